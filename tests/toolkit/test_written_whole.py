"""What commands write is there whole, all of it or nothing."""

import errno
import os
from pathlib import Path

import pytest

from unetsharp.outputs.folder import check_folder, write_files
from unetsharp_engines.errors import InputError


def test_a_disk_that_fills_up_leaves_none_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(content) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(InputError, match=r"-o .*old and .*large: cannot be written there \(No space left on device\)"):
        write_files({tmp_path / "old": b"new", tmp_path / "large": bytes(101)}, "-o")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_files_and_their_folders_are_made(tmp_path: Path) -> None:
    write_files({tmp_path / "a" / "one": b"1", tmp_path / "b" / "two": b"2"}, "-o")
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == {
        "one": b"1",
        "two": b"2",
    }


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root, and Windows, write into such folders")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="Permission denied"):
        check_folder(tmp_path, "-o")
