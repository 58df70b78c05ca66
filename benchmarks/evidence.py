"""What every result carries: what was run, from which commit, on what, with what."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unetsharp_engines.files import replacing

__all__ = ["evidence", "portable", "write_json"]

ROOT = Path(__file__).parents[1]


def evidence(what: str, packages: tuple[str, ...], sources: tuple[str, ...]) -> dict[str, Any]:
    """``what`` was measured; versions of ``packages``; whether ``sources`` (paths in the repository) were changed."""
    return {
        "what": what,
        "command": portable(["python", *sys.argv]),
        "commit": _commit(sources),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def write_json(path: Path, content: Any) -> None:
    """Write a result, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def portable(command: list[str]) -> str:
    """The command as one line; a path of this machine alone is shown by its last part."""
    return shlex.join([Path(word).name if Path(word).is_absolute() else word for word in command])


def _commit(sources: tuple[str, ...]) -> str:
    """A machine that was sent the files alone cannot tell; whoever sent them can write it in."""
    if not (ROOT / ".git").exists():
        return "unknown: not a git checkout"
    try:
        changed = _git("status", "--porcelain", "--", *sources)
        return _git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:  # no git, or one that refuses another user's files
        return f"unknown: {error}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
