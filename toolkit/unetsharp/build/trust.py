"""Whose engine it is. An engine file is code: TensorRT runs what is in it, with your rights.

Hashes prove that a file is the one that its bundle was written with, not that its author meant well. So each engine is
signed when it is built: HMAC-SHA-256 (RFC 2104) of its manifest entry and its ONNX's hash, under a secret of 32 random
bytes that only its user can read. An engine whose signature does not fit is foreign, and its bytes are handed out only
where the user said ``--trust``: give that for bundles from people whose programs you would run. The bundle's ONNX needs
no trust: it is data, which ONNX Runtime reads and TensorRT compiles.

Machines of one owner trust each other's engines once they share the key file (`key_path`). A signature says who built
an engine, nothing about who may read it.
"""

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

import typer

from unetsharp.build.manifest import EngineEntry
from unetsharp.cli.output import Output
from unetsharp_engines.errors import InputError

__all__ = ["check_key", "has_key", "is_own", "key_path", "signed"]

_KEY_BYTES = 32


def key_path() -> Path:
    """Where this user's key is kept, e.g. ``~/.config/unetsharp/engine-key`` (on Linux ``XDG_CONFIG_HOME`` counts)."""
    return Path(typer.get_app_dir("unetsharp")) / "engine-key"


def has_key() -> bool:
    """Whether there is a key file that this process can reach."""
    try:
        return key_path().is_file()
    except OSError:  # its folder may not be entered; from Python 3.14 on is_file() says False itself
        return False


def check_key() -> None:
    """Raise InputError for a key file that `signed` would refuse: before a build, not after it."""
    _key()


def signed(engine: EngineEntry, onnx_sha256: str, output: Output) -> EngineEntry:
    """``engine``, just built here from the ONNX of that hash, with this user's signature; the first makes the key.

    Where no key can be kept, ``output`` is warned and the engine stays unsigned. Raises InputError for a key file that
    others can read or that holds none.
    """
    try:
        key = _key() or _new_key()
    except OSError as error:
        output.warn(
            f"{error.filename}: no key can be kept there ({error.strerror}), so this engine will count as foreign here "
            f"too and run with --trust only; {_remedy()}"
        )
        return dataclasses.replace(engine, signature="")
    return dataclasses.replace(engine, signature=_signature(engine, onnx_sha256, key))


def is_own(engine: EngineEntry, onnx_sha256: str) -> bool:
    """Whether ``engine`` carries this user's signature. Raises InputError as `signed` does."""
    key = _key()
    return key is not None and hmac.compare_digest(_signature(engine, onnx_sha256, key), engine.signature)


def _remedy() -> str:
    if sys.platform in ("darwin", "win32"):  # there `typer.get_app_dir` asks for no variable that users set
        return f"{key_path().parent} must be a folder that you can write to"
    return "set XDG_CONFIG_HOME to a folder of yours"


def _signature(engine: EngineEntry, onnx_sha256: str, key: bytes) -> str:
    claim = {"onnx": onnx_sha256, **dataclasses.asdict(engine), "signature": ""}
    if engine.inspected is None:
        del claim["inspected"]  # so engines were signed before there was one
    return hmac.new(key, json.dumps(claim, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The key, or None where none is in reach. Raises InputError for one that proves nothing."""
    if not has_key():
        return None
    path = key_path()
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others than you can read this key, so it proves nothing; delete it and build again")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no key ({error}); delete it and build again") from error
    if len(key) != _KEY_BYTES:
        raise InputError(f"{path}: a key of {len(key)} bytes, not {_KEY_BYTES}; delete it and build again")
    return key


def _new_key() -> bytes:
    """Make the key's file, whole and readable by its user alone, unless another process was faster. Raises OSError."""
    path = key_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES))
        os.link(name, path)  # fails where the file exists, so that two builds agree on one key
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
    key = _key()
    assert key is not None
    return key
