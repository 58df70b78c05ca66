"""The prepared cache: what it holds, when it is made anew, and that no kill, full disk or second process spoils it."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from support.pannuke_folds import Arrays, fold_arrays, npz_compressed, released, save
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import StainStatus, estimate
from unetsharp_trainer.data.pannuke import Fold, open_folds
from unetsharp_trainer.data.prepared import PreparedFold, prepare

pytest.importorskip("filelock", reason="preparing is part of the train extra")


def stained(n: int) -> Arrays:
    """A fold whose patches are random mixtures of two stains; the last is blank glass."""
    arrays = fold_arrays(n, dtype="uint8", mask_dtype="uint16")
    rng = np.random.default_rng(1)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    amounts = rng.gamma(1.5, 0.4, (256, 256, 2)).astype(np.float32)
    for number, image in enumerate(arrays["images"]):
        levels = 240 * np.exp(-(amounts * rng.uniform(0.5, 1.5, 2)) @ stains) - 1
        image[...] = np.roll(np.clip(levels, 0, 255), 37 * number, axis=0)
    arrays["images"][-1] = 240
    return arrays


@pytest.fixture
def root(tmp_path: Path) -> Path:
    released(tmp_path / "data", 1, stained(5))
    return tmp_path / "data"


def open_one(root: Path) -> Fold:
    return open_folds(root)[1]


def prepare_one(root: Path, cache: Path, **options: object) -> PreparedFold:
    return prepare([open_one(root)], cache, **options)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_holds_what_the_fold_gives_stain_normalized(root: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetsharp_trainer.data.prepared._CHUNK", 2)
    done: list[int] = []
    fold, prepared = open_one(root), prepare_one(root, root / "cache", workers=workers, advance=done.append)
    assert sum(done) == len(prepared) == 5
    assert prepared.tissues == fold.tissues
    assert (prepared.images.dtype, prepared.targets.dtype, prepared.instances.dtype) == (np.uint8, np.uint8, np.int32)
    for index in range(5):
        image = fold.image(index)
        np.testing.assert_array_equal(prepared.images[index], estimate(image).transform.apply(image))
        np.testing.assert_array_equal(prepared.targets[index], fold.target(index))
        np.testing.assert_array_equal(prepared.instances[index], fold.instances(index))
    assert not np.array_equal(prepared.images[0], fold.image(0))


def test_flagged_tiles_are_left_alone_and_listed(root: Path) -> None:
    prepared = prepare_one(root, root / "cache")
    assert (prepared.images[4] == 240).all()
    assert [(t.index, t.tissue, t.status) for t in prepared.flagged] == [(4, "Colon", StainStatus.FEW_PIXELS.value)]
    listed = json.loads((prepared.folder / "flagged.json").read_text())
    assert (listed["patches"], listed["flagged"], listed["tiles"][0]["index"]) == (5, 1, 4)


def test_scope_none_leaves_every_patch_as_it_is(root: Path) -> None:
    fold, prepared = open_one(root), prepare_one(root, root / "cache", stain="none")
    assert all(np.array_equal(prepared.images[i], fold.image(i)) for i in range(5))
    assert not prepared.flagged
    with pytest.raises(InputError, match="'slide' is none of tile, none"):
        prepare_one(root, root / "cache", stain="slide")


def test_made_once_and_pickled_by_name(root: Path) -> None:
    first = prepare_one(root, root / "cache")
    stamp = (first.folder / "patches.npy").stat().st_mtime_ns
    done: list[int] = []
    again = prepare_one(root, root / "cache", advance=done.append)
    assert (again.folder, done) == (first.folder, [5])
    assert (again.folder / "patches.npy").stat().st_mtime_ns == stamp
    data = pickle.dumps(again)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).targets, first.targets)  # noqa: S301


def test_a_complete_cache_is_read_where_nothing_can_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_one(root, root / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("wrote")

    monkeypatch.setattr("unetsharp_trainer.data.prepared._make_writable", refuse)
    assert len(prepare_one(root, root / "cache")) == 5


def changed_in_place(root: Path) -> None:
    path = root / "Fold 1/images/fold1/images.npy"
    images = np.load(path, mmap_mode="r+")
    before = path.stat()
    images[2] = 255 - images[2]
    images.flush()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(root: Path) -> None:
    os.utime(root / "Fold 1/masks/fold1/masks.npy", ns=(0, 0))


def with_unknown(root: Path) -> None:
    save(root / "Fold 1/ignore.npy", np.ones((5, 256, 256), dtype=bool))


@pytest.mark.parametrize("change", [changed_in_place, touched, with_unknown])
def test_other_sources_make_another_folder(root: Path, change: object) -> None:
    first = prepare_one(root, root / "cache")
    change(root)  # type: ignore[operator]
    second = prepare_one(root, root / "cache")
    assert first.folder != second.folder
    np.testing.assert_array_equal(second.targets[3], open_one(root).target(3))


def test_another_method_makes_another_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_one(root, root / "cache")
    monkeypatch.setattr("unetsharp_trainer.data.prepared.estimate", lambda image: estimate(image[::2]))
    assert prepare_one(root, root / "cache").folder != first.folder


def test_compressed_source_is_prepared_in_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetsharp_trainer.data.prepared._CHUNK", 1)
    npz_compressed(tmp_path, 1, stained(4))
    fold, prepared = open_one(tmp_path), prepare_one(tmp_path, tmp_path / "cache", workers=2)
    np.testing.assert_array_equal(prepared.targets, [fold.target(i) for i in range(4)])


RUN = """
import sys
from pathlib import Path
from unetsharp_trainer.data.pannuke import open_folds
from unetsharp_trainer.data import prepared
prepared._CHUNK = 4
if __name__ == "__main__":
    root, cache = map(Path, sys.argv[1:])
    tell = lambda patches: print(patches, flush=True)
    print(prepared.prepare(list(open_folds(root).values()), cache, workers=2, advance=tell)[0].folder)
"""


def start(tmp_path: Path, cache: Path) -> "subprocess.Popen[str]":
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(tmp_path / "data"), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def in_session(session: int) -> list[int]:
    """Processes of a session that still run."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(of) == session and state != "Z":
            alive.append(int(stat.parent.name))
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for left-over processes in /proc")
def test_killed_run_leaves_no_process_and_is_taken_up_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetsharp_trainer.data.prepared._CHUNK", 4)
    released(tmp_path / "data", 1, stained(96))
    run = start(tmp_path, tmp_path / "cache")
    assert run.stdout is not None
    assert [run.stdout.readline() for _ in range(2)] == ["0\n", "4\n"]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 20
    while in_session(run.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not in_session(run.pid), "worker processes outlived their parent"

    (part,) = (tmp_path / "cache").glob("*.part")
    found = len(list(part.glob("chunks/*.json")))
    assert 1 <= found < 24
    done: list[int] = []
    prepared = prepare_one(tmp_path / "data", tmp_path / "cache", advance=done.append)
    assert (done[0], sum(done)) == (4 * found, 96)
    fresh = prepare_one(tmp_path / "data", tmp_path / "fresh")
    for ours, theirs in [
        (prepared.images, fresh.images),
        (prepared.targets, fresh.targets),
        (prepared.instances, fresh.instances),
    ]:
        np.testing.assert_array_equal(ours, theirs)
    assert prepared.flagged == fresh.flagged
    assert not list((tmp_path / "cache").glob("*.part"))


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    released(tmp_path / "data", 1, stained(5))
    runs = [start(tmp_path, tmp_path / "cache") for _ in range(2)]
    folders = [run.communicate()[0].splitlines()[-1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert folders[0] == folders[1]
    assert len(PreparedFold(Path(folders[0]))) == 5


def test_cache_that_cannot_be_written(root: Path) -> None:
    with pytest.raises(InputError, match=r"can be written here \(Not a directory\).* --cache DIR"):
        prepare_one(root, root / "Fold 1/images/fold1/images.npy/cache")


def test_too_little_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"0\.0 GB free.*--cache DIR"):
        prepare_one(root, root / "cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unreadable_patch_ends_it_with_its_line(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetsharp_trainer.data.prepared._CHUNK", 1)
    arrays = fold_arrays(3)
    images: npt.NDArray[np.float64] = arrays["images"].astype(np.float64)
    images[1, 0, 0, 0] = np.nan
    released(tmp_path, 1, {**arrays, "images": images})
    with pytest.raises(InputError, match="patch 1 has levels nan"):
        prepare_one(tmp_path, tmp_path / "cache", workers=workers)
