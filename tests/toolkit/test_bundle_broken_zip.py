"""Zips that are damaged or made to harm: refused in one line like any broken bundle, and never unpacked."""

import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.bundles import ENGINE, RecordingTensorRt, refused, written
from unetsharp_engines.errors import InputError

Change = Callable[[Path], object]


def members_of(root: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(root) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def repack(change: Callable[[zipfile.ZipInfo], object], name: str = "engine.plan", **options: Any) -> Change:
    """The zip packed again with one member's header changed."""

    def repacked(root: Path) -> None:
        members = members_of(root)
        with warnings.catch_warnings(), zipfile.ZipFile(root, "w", **options) as packed:
            warnings.simplefilter("ignore")  # of names that repeat: that is the point
            for path, content in members.items():
                member = zipfile.ZipInfo(path)
                if path == name:
                    change(member)
                packed.writestr(member, content)

    return repacked


def add_member(name: str, content: bytes = b"") -> Change:
    def added(root: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(root, "a") as packed:
            warnings.simplefilter("ignore")
            packed.writestr(zipfile.ZipInfo(name), content)

    return added


def patch_central(offset: int, value: bytes) -> Change:
    """Overwrite bytes of the first member's entry in the central directory."""

    def patched(root: Path) -> None:
        content = bytearray(root.read_bytes())
        at = content.index(b"PK\x01\x02") + offset
        content[at : at + len(value)] = value
        root.write_bytes(bytes(content))

    return patched


def flip_in_zip(root: Path) -> None:
    content = bytearray(root.read_bytes())
    content[content.index(ENGINE) + 50] ^= 1
    root.write_bytes(bytes(content))


def overlapping(root: Path) -> None:
    """Many names for the same bytes: few megabytes that unpack to petabytes."""
    content = root.read_bytes()
    first, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[first : content.index(b"PK\x01\x02", first + 4)]
    name = entry[46 : 46 + struct.unpack("<H", entry[28:30])[0]]
    copies = b"".join(entry.replace(name, name[:-3] + f"{n:03d}".encode()) for n in range(100))
    tail = bytearray(content[end:])
    tail[8:12] = struct.pack("<HH", 103, 103)
    tail[12:16] = struct.pack("<I", end - first + len(copies))
    root.write_bytes(content[:end] + copies + bytes(tail))


def a_thousand_files(root: Path) -> None:
    with zipfile.ZipFile(root, "a") as packed:
        for number in range(1000):
            packed.writestr(zipfile.ZipInfo(f"{number}"), b"")


ZIPS: dict[str, tuple[Change, str]] = {
    "truncated": (lambda root: os.truncate(root, root.stat().st_size // 2), "not a whole zip"),
    "empty": (lambda root: os.truncate(root, 0), "an empty file"),
    "only its end": (lambda root: root.write_bytes(root.read_bytes()[-22:]), "zip"),
    "no zip": (lambda root: root.write_bytes(b"PK\x03\x04 but no more"), "not a whole zip"),
    "no manifest": (repack(lambda m: setattr(m, "filename", "m.json"), "manifest.json"), "without manifest.json"),
    "no engine": (repack(lambda m: setattr(m, "filename", "e.plan")), "without engine.plan"),
    "a flipped bit": (flip_in_zip, "engine.plan"),
    "compressed": (repack(lambda m: setattr(m, "compress_type", zipfile.ZIP_DEFLATED)), "is compressed"),
    "compressed with LZMA": (repack(lambda m: setattr(m, "compress_type", zipfile.ZIP_LZMA)), "is compressed"),
    "encrypted": (patch_central(8, b"\x01\x00"), "is encrypted"),
    "of an unknown method": (patch_central(10, b"\x63\x00"), "is compressed"),
    "a name twice": (add_member("engine.plan", b"vtrt another"), "is in it twice"),
    "a manifest twice": (add_member("manifest.json", b"{}"), "is in it twice"),
    "a parent path": (add_member("../../evil.so"), "leads out of the bundle"),
    "an absolute path": (add_member("/etc/cron.d/evil"), "leads out of the bundle"),
    "a Windows path": (add_member("..\\evil.dll"), "leads out of the bundle"),
    "a drive": (add_member("C:evil.dll"), "leads out of the bundle"),
    "a link": (repack(lambda m: setattr(m, "external_attr", 0o120777 << 16)), "is a link"),
    "a length of 10 GB": (patch_central(20, struct.pack("<II", 0xFFFFFFFE, 0xFFFFFFFE)), "its members claim"),
    "a wrong length": (patch_central(24, struct.pack("<I", 1)), "and 1 bytes long"),
    "a member beyond its end": (patch_central(42, struct.pack("<I", 0x7FFFFFFF)), "not a whole zip"),
    "names for the same bytes": (overlapping, "its members claim"),
    "a version of the future": (patch_central(6, b"\xff\x00"), "zip"),
    "a thousand files": (a_thousand_files, "no bundle"),
}


@pytest.mark.parametrize("what", ZIPS)
def test_broken_zips_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    change, says = ZIPS[what]
    root = written(tmp_path / "bundle.zip").root
    change(root)
    refused(root, says)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"], "nothing is unpacked"


def test_a_pytorch_checkpoint_is_called_one(tmp_path: Path) -> None:
    """They are zips, too, with this file in a folder of their own."""
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as packed:
        packed.writestr("archive/data.pkl", b"")
    refused(tmp_path / "weights.pt", "a PyTorch checkpoint, which runs code when it is loaded; give weights as")


def test_a_zip_of_10_gb_that_is_64_bit_is_refused(tmp_path: Path) -> None:
    """Lengths in the 64-bit field: the file itself is a few kilobytes."""
    root = written(tmp_path / "bundle.zip").root
    with zipfile.ZipFile(root, "a") as packed:
        member = zipfile.ZipInfo("large.plan")
        packed.writestr(member, b"few")
        member.file_size = member.compress_size = 10**10
    refused(root, "its members claim 100000")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_zip_gets_past_input_error(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte changed or any end cut off: what is loaded, if anything, is the very engine that was signed."""
    (tmp_path / "bundle.zip").unlink(missing_ok=True)
    root = written(tmp_path / "bundle.zip").root
    content = bytearray(root.read_bytes())
    structure = [*range(80), *range(content.index(b"PK\x01\x02"), len(content))]
    for at in data.draw(st.lists(st.sampled_from(structure), min_size=1, max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    root.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))]))
    trt = RecordingTensorRt()
    try:
        trt.load(root)
    except InputError as error:
        assert "\n" not in str(error)
        assert trt.seen == []
    else:
        assert trt.seen == [ENGINE]
