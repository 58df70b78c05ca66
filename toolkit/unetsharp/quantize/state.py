"""Where a quantization that was stopped is kept, until what it was for is written."""

from pathlib import Path

__all__ = ["CALIBRATION", "TRIALS", "forget", "state_file"]

CALIBRATION, TRIALS = ".calibration", ".trials.json"


def state_file(path: Path, suffix: str) -> Path:
    """The file beside ``path``, which is to be written, that keeps `CALIBRATION` or `TRIALS` for it."""
    return path.with_name(f".{path.name}{suffix}")


def forget(path: Path) -> None:
    """Remove both: ``path`` is written."""
    for suffix in (CALIBRATION, TRIALS):
        state_file(path, suffix).unlink(missing_ok=True)
