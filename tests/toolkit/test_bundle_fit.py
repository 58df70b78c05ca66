"""Which engine of a bundle runs on which machine, and what is said where none does."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.bundles import ENGINE, HOST, engine_entry, own, written
from unetsharp import machine
from unetsharp.build import flavours
from unetsharp.build.bundle import Bundle
from unetsharp.build.fit import Host, fitting_engine, host_of
from unetsharp_engines.errors import InputError, MissingCapabilityError

TENSORRT = dataclasses.replace(HOST, runtime="tensorrt", version="10.3.0")


def fits(root: Path, host: Host, **engine: Any) -> bool:
    try:
        fitting_engine(written(root, engine_entry(runtime=host.runtime, **engine)), host)
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("runtime", "built", "here", "compatible", "plain"),
    [
        ("tensorrt", "10.3.0", "10.3.0", True, True),
        ("tensorrt", "10.3.0", "10.13.0.35", True, False),
        ("tensorrt", "10.13.0.35", "10.3.0", False, False),
        ("tensorrt", "10.13.0.35", "10.13.0.36", True, False),
        ("tensorrt", "8.6.2", "10.3.0", True, False),
        ("tensorrt", "10.13.0.35", "11.4.1", True, False),
        ("tensorrt", "8.6.2", "11.4.1", False, False),
        ("tensorrt", "11.0.0", "10.13.0", False, False),
        ("tensorrt-rtx", "1.7.1.116", "1.7.1.116", True, True),
        ("tensorrt-rtx", "1.5.0.100", "1.7.1.116", False, False),
    ],
)
def test_versions_as_nvidia_documents_them(
    tmp_path: Path, runtime: str, built: str, here: str, compatible: bool, plain: bool
) -> None:
    """``compatible``: whether a version-compatible engine of ``built`` runs; ``plain``: whether another does."""
    host = dataclasses.replace(HOST, runtime=runtime, version=here)
    assert fits(tmp_path / "compatible", host, version=built, version_compatible=True) is compatible
    assert fits(tmp_path / "plain", host, version=built) is plain


@pytest.mark.parametrize(
    ("targets", "ampere_plus", "here", "expected"),
    [
        (("sm86", "sm89"), False, "sm89", True),
        (("sm86",), False, "sm89", False),
        (("sm86",), True, "sm89", True),
        (("sm86",), True, "sm120", True),
        (("sm86",), True, "sm75", False),
        (("sm80",), False, "sm87", False),
    ],
)
def test_gpus(tmp_path: Path, targets: tuple[str, ...], ampere_plus: bool, here: str, expected: bool) -> None:
    host = dataclasses.replace(TENSORRT, target=here)
    assert fits(tmp_path / "b", host, version="10.3.0", targets=targets, ampere_plus=ampere_plus) is expected


def test_of_several_engines_the_right_one_is_chosen(tmp_path: Path) -> None:
    """Every engine fits its own machine, whatever the order in which they lie in the bundle."""
    engines = [
        engine_entry(path="rtx.plan"),
        engine_entry(
            path="orin.plan", runtime="tensorrt", version="10.3.0", targets=("sm87",), platform="linux-aarch64"
        ),
        engine_entry(path="h100.plan", runtime="tensorrt", version="10.13.0.35", targets=("sm90",)),
        engine_entry(path="old-h100.plan", runtime="tensorrt", version="10.3.0", targets=("sm90",)),
    ]
    for number, order in enumerate(itertools.permutations(engines)):
        bundle = written(tmp_path / str(number), *order)
        for engine in engines:
            host = Host(
                runtime=engine.runtime, version=engine.version, target=engine.targets[0], platform=engine.platform
            )
            assert fitting_engine(bundle, host).file.path == engine.file.path


def test_an_engine_of_this_version_and_for_this_gpu_alone_is_preferred(tmp_path: Path) -> None:
    def entry(path: str, **changes: Any) -> Any:
        return engine_entry(path=path, runtime="tensorrt", **{"version": "10.3.0", "targets": ("sm86",), **changes})

    wide = entry("wide.plan", targets=("sm86", "sm89"))
    older = entry("older.plan", version="10.0.1", version_compatible=True)
    assert fitting_engine(written(tmp_path / "a", older, wide), TENSORRT).file.path == "wide.plan"
    assert fitting_engine(written(tmp_path / "b", older, wide, entry("own.plan")), TENSORRT).file.path == "own.plan"
    assert fitting_engine(written(tmp_path / "c", older), TENSORRT).file.path == "older.plan"


MISFITS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "GPU": ({"target": "sm90"}, ("TensorRT-RTX 1.7.1.116, sm90, linux-x86_64", "its engine runs on sm86, sm89 only")),
    "version": (
        {"version": "1.8.0.2"},
        ("TensorRT-RTX 1.8.0.2", "built by TensorRT-RTX 1.7.1.116 and needs that version"),
    ),
    "platform": ({"platform": "windows-amd64"}, ("windows-amd64", "was built on linux-x86_64")),
    "runtime": ({"runtime": "tensorrt"}, ("holds engines for tensorrt-rtx, none for tensorrt",)),
    "all": (
        {"version": "1.8.0.2", "target": "sm75", "platform": "linux-aarch64"},
        ("TensorRT-RTX 1.8.0.2, sm75, linux-aarch64", "1.7.1.116 and needs that version and runs on sm86, sm89 only"),
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_misfit_names_both_sides_and_the_command_that_rebuilds(tmp_path: Path, what: str) -> None:
    here, says = MISFITS[what]
    host = dataclasses.replace(HOST, **here)
    bundle = written(tmp_path / "bundle")
    with pytest.raises(InputError) as caught:
        fitting_engine(bundle, host)
    line = str(caught.value)
    command = f"unetsharp build-engine {bundle.root} -o {bundle.root} --add --runtime {host.runtime}"
    assert [part for part in (str(bundle.root), *says, "--rebuild", command) if part not in line] == []
    assert "\n" not in line


def test_of_several_that_do_not_fit_the_nearest_is_told(tmp_path: Path) -> None:
    far = engine_entry(path="far.plan", version="1.5.0", targets=("sm75",))
    bundle = written(tmp_path / "bundle", far, engine_entry(path="near.plan"))
    with pytest.raises(InputError, match=r"the nearest of its 2 engines, near\.plan, runs on sm86, sm89 only"):
        fitting_engine(bundle, dataclasses.replace(HOST, target="sm120"))


VERSIONS = st.sampled_from(["8.6.2", "10.3.0", "10.13.0.35", "11.4.1", "1.7.1.116"])


@given(
    version=VERSIONS,
    target=st.sampled_from(["sm75", "sm86", "sm87", "sm90"]),
    platform=st.sampled_from(["linux-x86_64", "linux-aarch64"]),
    runtime=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_without_compatibility_only_the_same_machine_fits(
    plain: Bundle, version: str, target: str, platform: str, runtime: str
) -> None:
    host = Host(runtime=runtime, version=version, target=target, platform=platform)
    same = (runtime, version, platform) == (HOST.runtime, HOST.version, HOST.platform) and target == "sm86"
    try:
        assert fitting_engine(plain, host).file.size == len(ENGINE)
        assert same
    except InputError:
        assert not same


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    return written(tmp_path / "bundle", own(engine_entry()))


class Module:
    __version__ = "10.3.0"


def test_the_host_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = flavours.Loaded(flavour=flavours.TENSORRT, trt=Module)
    orin = machine.Gpu(name="Orin", target="sm87", memory_bytes=8 << 30)
    monkeypatch.setattr(machine, "gpus", lambda: (orin,))
    monkeypatch.setattr(machine, "os_and_arch", lambda: "linux-aarch64")
    assert host_of(loaded) == Host(runtime="tensorrt", version="10.3.0", target="sm87", platform="linux-aarch64")
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(MissingCapabilityError, match="none; --runtime onnxruntime runs the bundle's ONNX"):
        host_of(loaded)
