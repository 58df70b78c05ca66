"""Which processors add up bytes exactly, and what is done where they do not."""

from pathlib import Path

import pytest

from support.tiny_onnx import tiny_onnx
from unetsharp_engines.runtimes import onnxruntime as module
from unetsharp_engines.runtimes import processor


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", True),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("x86_64", "fpu avx2 avx512f", False),
        ("x86_64", None, False),
        ("aarch64", "asimddp", True),
    ],
)
def test_by_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str | None, exact: bool
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"model name : some\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "_CPUINFO", info)
    assert processor.sums_int8_exactly() is exact


@pytest.mark.parametrize("exact", [True, False])
def test_onnx_runtime_is_asked_for_exact_sums(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    import onnxruntime

    asked: list[tuple[str, str]] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]  # onnxruntime ships no types
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(module, "sums_int8_exactly", lambda: exact)
    module.OnnxRuntime(tiny_onnx().SerializeToString()).close()
    assert (("session.x64quantprecision", "1") in asked) is not exact
