"""The kernels' machine code: every architecture compiles clean, without a GPU, and is kept."""

import sys
from pathlib import Path

import pytest

from unetsharp_engines.cuda.compiling import ARCHITECTURES, cache_folder, compile_kernels, compile_ptx
from unetsharp_engines.cuda.deep import DEEP_KERNELS, program
from unetsharp_engines.cuda.kernels import SIGNATURES
from unetsharp_engines.errors import MissingCapabilityError


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "unetsharp" / "kernels"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_without_a_warning_or_a_spill(arch: str) -> None:
    compiled = compile_kernels(arch)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert not compiled.warnings
    assert set(compiled.kernels) == set(SIGNATURES)
    for name, facts in compiled.kernels.items():
        assert facts.spilled_bytes == 0, name
        assert 8 <= facts.registers <= 255, name
        assert facts.shared_bytes <= 48 << 10, name
    assert compiled.kernels["stain_concentrations"].shared_bytes > 2 * 2048 * 4  # its two histograms


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_deep_kernels_compile_without_a_warning_or_a_spill(arch: str) -> None:
    compiled = compile_kernels(arch, program())
    assert not compiled.warnings
    assert set(compiled.kernels) == {kernel.name for kernel in DEEP_KERNELS}
    assert all(facts.spilled_bytes == facts.stack_bytes == 0 for facts in compiled.kernels.values())
    assert all(facts.registers <= 128 for facts in compiled.kernels.values())  # four blocks a multiprocessor


def test_a_program_of_one_kernel_as_ptx() -> None:
    kernel = DEEP_KERNELS[0]
    text = compile_ptx(program([kernel])).decode("ascii")
    assert ".target sm_75" in text
    assert text.count(".entry") == 1
    assert f".entry {kernel.name}(" in text
    assert text.endswith("\n")


def test_ptx_declares_the_oldest_version_that_holds_it() -> None:
    """NVIDIA's assembler takes it as what it says it is; one version older, and it does not."""
    nvjitlink = pytest.importorskip("cuda.bindings.nvjitlink", reason="cuda-bindings are not installed")

    def assemble(ptx: bytes) -> None:
        linker = nvjitlink.create(1, ["-arch=sm_90"])
        try:
            nvjitlink.add_data(linker, nvjitlink.InputType.PTX, ptx, len(ptx), "kernels")
            nvjitlink.complete(linker)
        finally:
            nvjitlink.destroy(linker)

    text = compile_ptx(program())
    assert text.count(b".version 6.3\n") == 1
    assemble(text)
    with pytest.raises(nvjitlink.nvJitLinkError, match="PTX_COMPILE"):
        assemble(text.replace(b".version 6.3\n", b".version 6.2\n"))


def test_keeps_what_it_compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_kernels("sm_90")
    assert cache_folder() == cache
    kept = sorted(path.suffix for path in cache.iterdir())
    assert kept == [".cubin", ".log"]
    monkeypatch.setattr("unetsharp_engines.cuda.compiling._compile", lambda *_: pytest.fail("compiled again"))
    assert compile_kernels("sm_90") == first


def test_compiles_again_what_changed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetsharp_engines.cuda.compiling._compile", lambda *_: (b"code", "log"))
    compile_kernels("sm_90")
    monkeypatch.setattr("unetsharp_engines.cuda.compiling._OPTIONS", ("--another",))
    compile_kernels("sm_90")
    assert len(list(cache.glob("*.cubin"))) == 2


def test_needs_no_cache_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "no folder"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr("unetsharp_engines.cuda.compiling._compile", lambda *_: (b"code", "log"))
    assert compile_kernels("sm_90").cubin == b"code"


def test_says_which_architectures_nvrtc_lacks(cache: Path) -> None:
    with pytest.raises(MissingCapabilityError, match="does not compile for sm_20"):
        compile_kernels("sm_20")
    assert not cache.exists()


def test_says_how_to_install_nvrtc(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingCapabilityError, match="pip install"):
        compile_kernels("sm_90")
