import collections
import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfgpu.artifacts import lock
from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.checkpoint import format
from tfgpu.checkpoint.store import Checkpoint, CheckpointStore, OtherRunError
from tfgpu.errors import ModelFileError, RequestError

posix = pytest.mark.skipif(sys.platform == "win32", reason="flock, fork and resource are POSIX")


def store(directory, *, run_id="run", keep=2, warnings=None):
    warn = pytest.fail if warnings is None else warnings.append
    return CheckpointStore(directory, run_id=run_id, keep=keep, warn=warn)


def arrays_of(step):
    """Small arrays, other ones for each step."""
    random = np.random.default_rng(step)
    return {
        "kernel": random.standard_normal((3, 4)).astype(np.float32),
        "iterations": np.asarray(step, np.int64),
    }


def save(directory, step, **kwargs):
    return store(directory).save(step, arrays_of(step), {"step": step}, **kwargs)


def same(read, arrays):
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def sound(found, step):
    """Whether a checkpoint is that of the step, every bit of it."""
    assert isinstance(found, Checkpoint)
    assert found.step == step and found.state == {"step": step}
    same(found.arrays, arrays_of(step))
    return True


def entries(directory):
    return sorted(os.listdir(directory))


# What is saved comes back.


def test_every_kind_of_array_comes_back(tmp_path):
    import ml_dtypes

    random = np.random.default_rng(0)
    arrays = {
        "z first": random.standard_normal((3, 4, 5)).astype(np.float32),
        "a/second": np.asarray(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "bool": np.array([True, False, True]),
        "seed": np.array([1, 2**32 - 1], np.uint32),
        "half": random.standard_normal(9).astype(np.float16),
        "bfloat16": random.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "scalar bfloat16": np.asarray(1.5, ml_dtypes.bfloat16),
        "float8": np.array([0.5, 2.0], ml_dtypes.float8_e4m3fn),
        "complex": np.array([1 + 2j]),
        "wide": np.array([np.nan, np.inf, -0.0, 5e-324]),
        "uint8": np.arange(256, dtype=np.uint8),
        "transposed": np.arange(12, dtype=np.int32).reshape(3, 4).T,
        "strided": np.arange(20, dtype=np.int16)[::3],
        "generic": np.float32(2.5),
        "longer than a chunk": np.arange(format.CHUNK // 4 + 7, dtype=np.int32),
    }
    state = {"epoch": 3, "best": float("inf"), "rate": 0.1, "names": ["é", None], "none": {}}
    path = store(tmp_path / "a" / "b").save(1230, arrays, state)
    assert path == tmp_path / "a" / "b" / "step-00001230"
    assert entries(path) == ["arrays.bin", "manifest.json"]
    found = store(tmp_path / "a" / "b").newest()
    same(found.arrays, arrays)
    assert (found.path, found.step, found.state) == (path, 1230, state)
    assert all(array.flags.writeable for array in found.arrays.values())


def test_big_endian_arrays_are_stored_little_endian(tmp_path):
    store(tmp_path).save(1, {"a": np.array([1, 2], ">i4")}, {})
    assert (tmp_path / "step-00000001" / "arrays.bin").read_bytes() == b"\1\0\0\0\2\0\0\0"
    same(store(tmp_path).newest().arrays, {"a": np.array([1, 2], "<i4")})


def test_a_write_that_takes_less_is_gone_on_with(tmp_path, monkeypatch):
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
        save(tmp_path, 1)
    assert sound(store(tmp_path).newest(), 1)


def test_the_manifest_is_json(tmp_path):
    manifest = json.loads((save(tmp_path, 5) / "manifest.json").read_text())
    assert manifest["step"] == 5 and manifest["run_id"] == "run" and not manifest["best"]
    assert manifest["arrays"][1]["name"] == "iterations"
    assert manifest["arrays"][1]["offset"] == manifest["arrays"][0]["nbytes"] == 48


def test_no_arrays_and_no_state_can_be_saved(tmp_path):
    store(tmp_path).save(0, {}, {})
    found = store(tmp_path).newest()
    assert (found.step, found.arrays, found.state) == (0, {}, {})


@pytest.mark.parametrize(
    "value", [np.array(["text"]), np.array([None]), np.zeros(2, "i4,f4"), [1.0], np.longdouble(1)]
)
def test_what_cannot_be_read_again_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match="^mine: "):
        store(tmp_path / "c").save(1, {"mine": value}, {})
    with pytest.raises(TypeError, match="^mine: "):
        store(tmp_path / "c").save_in_background(1, {"mine": value}, {})
    assert not (tmp_path / "c").exists()


def test_a_state_that_is_not_json_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError):
        store(tmp_path / "c").save_in_background(1, {}, {"a": np.zeros(2)})
    assert not (tmp_path / "c").exists()


def test_keep_and_step_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
        store(tmp_path, keep=0)
    with pytest.raises(ValueError, match="-1"):
        store(tmp_path).save(-1, {}, {})


def test_nothing_there(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        assert store(directory).newest() is None and store(directory).best() is None
    assert entries(tmp_path) == []


def test_the_directory_follows_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        path = save(tmp_path / "c", 1)
        assert path.stat().st_mode & 0o777 == 0o750
        assert (path / "arrays.bin").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)


# What is kept.


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    mine = store(tmp_path)
    kept = []
    for step in range(10, 80, 10):
        mine.save(step, arrays_of(step), {"step": step}, best=step in (20, 50))
        kept.append([int(name.removeprefix("step-")) for name in entries(tmp_path)])
    assert kept == [
        [10],
        [10, 20],
        [20, 30],
        [20, 30, 40],
        [40, 50],
        [50, 60],
        [50, 60, 70],
    ]
    assert sound(store(tmp_path).best(), 50) and sound(store(tmp_path).newest(), 70)


def test_the_best_of_an_earlier_process_is_kept(tmp_path):
    save(tmp_path, 10, best=True)
    save(tmp_path, 20)
    mine = store(tmp_path)
    assert mine.newest().step == 20
    for step in (30, 40, 50):
        mine.save(step, arrays_of(step), {"step": step})
    assert entries(tmp_path) == ["step-00000010", "step-00000040", "step-00000050"]
    assert sound(mine.best(), 10)


def test_an_unread_best_does_not_oust_an_older_one(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, best=True)
    (tmp_path / "step-00000020" / "arrays.bin").write_bytes(b"")
    mine = store(tmp_path)
    for step in (30, 40, 50):
        mine.save(step, arrays_of(step), {"step": step})
    warnings = []
    assert sound(store(tmp_path, warnings=warnings).best(), 10)
    assert len(warnings) == 1 and "step-00000020" in warnings[0]


def test_what_was_not_read_is_kept_until_enough_is_known_to_be_sound(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    mine = store(tmp_path)
    mine.save(40, {}, {})
    assert len(entries(tmp_path)) == 4
    mine.save(50, {}, {})
    assert entries(tmp_path) == ["step-00000040", "step-00000050"]


def test_keep_one(tmp_path):
    mine = store(tmp_path, keep=1)
    for step in (1, 2, 3):
        mine.save(step, {}, {})
    assert entries(tmp_path) == ["step-00000003"]


def test_foreign_entries_stay(tmp_path):
    others = ["notes.txt", "step-5", "step-00000007.0", ".step-old.tmp", "step-00000001.bak"]
    for name in others:
        (tmp_path / name).mkdir()
    mine = store(tmp_path, keep=1)
    for step in (1, 2):
        mine.save(step, {}, {})
    assert entries(tmp_path) == sorted([*others, "step-00000002"])
    assert mine.newest().step == 2


def test_old_ones_that_cannot_be_removed_are_a_warning(tmp_path, monkeypatch):
    warnings = []
    mine = store(tmp_path, keep=1, warnings=warnings)
    mine.save(1, {}, {})

    def rmtree(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        mine.save_in_background(2, {}, {})
        mine.wait()
    assert len(warnings) == 1
    assert "is saved, but an old one could not be removed (Permission denied" in warnings[0]
    mine.save(3, {}, {})
    assert entries(tmp_path) == ["step-00000003"]


# Saving a step again.


def test_a_step_is_saved_again_beside_the_old(tmp_path, monkeypatch):
    mine = store(tmp_path)
    mine.save(10, {}, {})
    mine.save(20, arrays_of(1), {"first": True})
    seen = []
    rename = os.rename

    def spy(source, target):
        rename(source, target)
        seen.append(store(tmp_path, warnings=[]).newest().step)

    monkeypatch.setattr(os, "rename", spy)
    path = mine.save(20, arrays_of(20), {"step": 20})
    assert seen and set(seen) == {20}
    assert path.name == "step-00000020.1"
    # Of the same step one is enough.
    assert entries(tmp_path) == ["step-00000010", "step-00000020.1"]
    assert sound(store(tmp_path).newest(), 20)


def test_a_run_that_goes_back_counts_as_newer_and_keeps_the_damaged_until_it_passes(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    save(tmp_path, 30)
    (tmp_path / "step-00000020" / "manifest.json").write_bytes(b"{}")
    damaged = tmp_path / "step-00000030" / "arrays.bin"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    warnings = []
    mine = store(tmp_path, warnings=warnings)
    assert sound(mine.newest(), 10) and len(warnings) == 2
    names = []
    for step in (15, 20, 25, 30, 35):
        mine.save(step, arrays_of(step), {"step": step})
        names.append([name.removeprefix("step-000000") for name in entries(tmp_path)])
        if step == 20:
            # It comes back to life, and is still not what the run goes on from.
            damaged.write_bytes(content)
            assert sound(store(tmp_path).newest(), 20)
    assert names == [
        ["10", "15.1", "20", "30"],
        ["15.1", "20.1", "30"],
        ["20.1", "25.1", "30"],
        ["25.1", "30.1"],
        ["30.1", "35.1"],
    ]


# Damage.


def passed_over(directory, reason):
    """The newest checkpoint is passed over for the one of step 1, with a warning that says why."""
    warnings = []
    found = store(directory, warnings=warnings).newest()
    assert sound(found, 1)
    assert len(warnings) == 1
    assert str(directory / "step-00000002") in warnings[0] and "\n" not in warnings[0]
    assert re.search(reason, warnings[0]), warnings[0]
    return True


@pytest.fixture
def two(tmp_path):
    save(tmp_path, 1)
    return save(tmp_path, 2)


def flip(path, offset, mask):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= mask
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["manifest.json", "arrays.bin"])
def test_every_flipped_byte_is_found(two, name):
    size = (two / name).stat().st_size
    for offset in range(size):
        # Every bit alone, all of them, and the one that turns a letter's case.
        for mask in (1 << offset % 8, 0xFF, 0x20):
            flip(two / name, offset, mask)
            reason = "checksum of manifest.json" if name == "manifest.json" else "checksum of "
            assert passed_over(two.parent, reason)
            flip(two / name, offset, mask)
    assert sound(store(two.parent).newest(), 2)


def test_flipped_bytes_in_a_large_file_are_found(tmp_path):
    save(tmp_path, 1)
    count = 3 * format.CHUNK // 8 + 5
    path = store(tmp_path).save(2, {"a": np.arange(count), "b": np.ones(3)}, {}) / "arrays.bin"
    size = path.stat().st_size
    chunk = format.CHUNK
    offsets = [0, 1, chunk - 1, chunk, 3 * chunk - 1, 8 * count - 1, 8 * count, size - 1]
    for offset in offsets + random.Random(0).sample(range(size), 20):
        flip(path, offset, 1 << offset % 8)
        name = "a" if offset < 8 * count else "b"
        assert passed_over(tmp_path, f"the checksum of {name} in arrays.bin is wrong")
        flip(path, offset, 1 << offset % 8)


@pytest.mark.parametrize("name", ["manifest.json", "arrays.bin"])
def test_every_truncation_is_found(two, name):
    raw = (two / name).read_bytes()
    for length in range(len(raw)):
        (two / name).write_bytes(raw[:length])
        assert passed_over(two.parent, "checksum|has [0-9]+ bytes instead of 56")
    (two / name).write_bytes(raw + b"\0")
    assert passed_over(two.parent, "checksum|has 57 bytes instead of 56")


def remanifest(path, **changes):
    """Changes fields of a manifest and makes its checksum right."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    manifest.pop("sha256")
    for name in [name for name, value in manifest.items() if value is None]:
        del manifest[name]
    rest = ('",\n' + json.dumps(manifest)[1:]).encode()
    digest = hashlib.sha256(rest).hexdigest().encode()
    (path / "manifest.json").write_bytes(b'{\n"sha256": "' + digest + rest)


def _to_file(path):
    shutil.rmtree(path)
    path.write_text("")


def _arrays_to_directory(path):
    (path / "arrays.bin").unlink()
    (path / "arrays.bin").mkdir()


def _foreign(path):
    shutil.rmtree(path)
    store(path.parent / "other", run_id="other").save(2, arrays_of(2), {"step": 2}).rename(path)


DAMAGES = {
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "no arrays": (lambda path: (path / "arrays.bin").unlink(), "arrays.bin is missing"),
    "nothing": (lambda path: [file.unlink() for file in path.iterdir()], "is missing"),
    "one more": (lambda path: (path / "more").touch(), "'more' does not belong to it"),
    "a file": (_to_file, "it is no directory"),
    "a directory": (_arrays_to_directory, r"arrays.bin cannot be read \(Is a directory\)"),
    "unreadable": (lambda path: (path / "manifest.json").write_bytes(b"\xff"), "the checksum of"),
    "no JSON": (lambda path: (path / "manifest.json").write_text("{"), "the checksum of manifest"),
    "format": (lambda path: remanifest(path, format=99), "of format 99, .* reads format 1"),
    "no state": (lambda path: remanifest(path, state=None), "has no 'state'"),
    "another run": (_foreign, "it belongs to another run"),
    "same run": (
        lambda path: shutil.copy(path.with_name("step-00000001") / "manifest.json", path),
        "its manifest.json is that of step-00000001",
    ),
    "other arrays": (
        lambda path: shutil.copy(path.with_name("step-00000001") / "arrays.bin", path),
        "the checksum of kernel in arrays.bin is wrong",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_named_and_passed_over(two, damage):
    do, reason = DAMAGES[damage]
    do(two)
    assert passed_over(two.parent, reason)


def test_the_rewritten_manifest_of_these_tests_is_sound(two):
    remanifest(two)
    assert sound(store(two.parent).newest(), 2)


def test_a_renamed_checkpoint_is_no_newer_one(two):
    shutil.copytree(two, two.with_name("step-00000003"))
    warnings = []
    assert sound(store(two.parent, warnings=warnings).newest(), 2)
    assert "is that of step-00000002" in warnings[0]


def test_none_sound_is_an_error_that_says_what_was_found(two):
    (two / "arrays.bin").unlink()
    flip(two.with_name("step-00000001") / "manifest.json", 100, 1)
    warnings = []
    with pytest.raises(ModelFileError) as caught:
        store(two.parent, warnings=warnings).newest()
    assert caught.value.exit_code == 4 and len(warnings) == 2
    assert "step-00000002 (arrays.bin is missing)" in str(caught.value)
    assert "step-00000001 (the checksum of manifest.json is wrong)" in str(caught.value)
    assert str(two.parent) in str(caught.value) and "\n" not in str(caught.value)


def test_many_damages_make_a_short_line(tmp_path):
    for step in range(1, 30):
        (tmp_path / f"step-{step:08}").mkdir()
    with pytest.raises(ModelFileError) as caught:
        store(tmp_path, warnings=[]).newest()
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "c").touch()
    with pytest.raises(ModelFileError, match="cannot be read"):
        store(tmp_path / "c").newest()
    with pytest.raises(OSError) as caught:
        save(tmp_path / "c", 1)
    assert str(tmp_path / "c") in caught.value.filename


def test_a_damaged_best_is_named_and_an_older_one_taken(two):
    shutil.rmtree(two)
    for step, best in ((2, True), (3, True), (4, False)):
        save(two.parent, step, best=best)
    (two.with_name("step-00000003") / "arrays.bin").unlink()
    warnings = []
    mine = store(two.parent, warnings=warnings)
    assert sound(mine.best(), 2) and len(warnings) == 1
    (two / "manifest.json").unlink()
    assert mine.best() is None


def test_damaged_ones_do_not_count_among_those_kept(tmp_path):
    mine = store(tmp_path, warnings=[])
    for step in (1, 2):
        mine.save(step, arrays_of(step), {"step": step})
    (tmp_path / "step-00000002" / "arrays.bin").unlink()
    mine = store(tmp_path, warnings=[])
    mine.newest()
    mine.save(3, arrays_of(3), {"step": 3})
    assert entries(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    mine.save(4, arrays_of(4), {"step": 4})
    assert entries(tmp_path) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("files", [(), ("arrays.bin",), ("arrays.bin", "manifest.json")])
def test_what_a_dead_process_left_is_named_and_goes_with_the_next_save(tmp_path, files):
    left = tmp_path / ".step-00000009-0123456789abcdef.tmp"
    left.mkdir()
    for name in files:
        (left / name).write_bytes(b"half")
    warnings = []
    mine = store(tmp_path, warnings=warnings)
    assert mine.newest() is None
    assert len(warnings) == 1 and str(left) in warnings[0]
    assert left.exists()
    mine.save(1, arrays_of(1), {"step": 1})
    assert entries(tmp_path) == ["step-00000001"]


@posix
def test_what_a_living_process_writes_stays(tmp_path):
    left = tmp_path / ".step-00000009-0123456789abcdef.tmp"
    left.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\n"
            "time.sleep(60)",
            str(left / "arrays.bin"),
        ],
        stdout=subprocess.PIPE,
    )
    with holder:
        try:
            holder.stdout.readline()
            save(tmp_path, 1)
            assert store(tmp_path).newest().step == 1
            assert left.exists()
        finally:
            holder.kill()
    save(tmp_path, 2)
    assert not left.exists()


# In the background.


def test_a_background_save_is_there_after_wait(tmp_path):
    mine = store(tmp_path)
    mine.save_in_background(1, arrays_of(1), {"step": 1})
    mine.wait()
    assert sound(store(tmp_path).newest(), 1)
    mine.save_in_background(2, arrays_of(2), {"step": 2}, best=True)
    assert sound(mine.newest(), 2)  # Waits by itself.
    assert sound(mine.best(), 2)
    mine.close()
    mine.close()


class Gate:
    """Holds the flush of a file in the writer's thread until told."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.waiting = threading.Event()
        fsync = os.fsync

        def gated(descriptor):
            self.waiting.set()
            assert self.open.wait(30)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", gated)


def test_a_background_save_does_not_wait_and_takes_the_state_at_once(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    mine = store(tmp_path)
    state = {"step": 1, "list": []}
    mine.save_in_background(1, arrays_of(1), state)
    state["list"].append("later")
    assert gate.waiting.wait(30)
    mine.poll()
    assert not any(name.startswith("step-") for name in entries(tmp_path))
    gate.open.set()
    mine.wait()
    assert mine.newest().state == {"step": 1, "list": []}


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    mine = store(tmp_path)
    mine.save_in_background(1, {}, {})
    opener = threading.Timer(0.2, gate.open.set)
    opener.start()
    mine.save_in_background(2, {}, {})
    assert gate.open.is_set() and (tmp_path / "step-00000001").exists()
    mine.close()
    opener.join()
    assert mine.newest().step == 2


def full(monkeypatch):
    def write(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)


def test_a_background_save_that_fails_is_a_warning_and_the_next_tries_again(tmp_path, monkeypatch):
    warnings = []
    mine = store(tmp_path, warnings=warnings)
    mine.save(1, arrays_of(1), {"step": 1})
    with monkeypatch.context() as patched:
        full(patched)
        mine.save_in_background(2, arrays_of(2), {"step": 2})
        mine._writer.join()
        assert warnings == []  # Said in the caller's thread, not in the writer's.
        mine.poll()
        assert len(warnings) == 1 and "No space left on device" in warnings[0]
        assert str(tmp_path) in warnings[0] and "\n" not in warnings[0]
        mine.poll()
        assert len(warnings) == 1
        mine.save_in_background(3, arrays_of(3), {"step": 3})
        with pytest.raises(OSError) as caught:
            mine.wait()
        assert caught.value.errno == errno.ENOSPC and str(tmp_path) in caught.value.filename
        with pytest.raises(OSError):
            mine.wait()
        assert len(warnings) == 2
        mine.save_in_background(4, arrays_of(4), {"step": 4})
        assert sound(mine.newest(), 1) and len(warnings) == 3
    assert entries(tmp_path) == ["step-00000001"]
    mine.save_in_background(5, arrays_of(5), {"step": 5})
    mine.wait()
    assert sound(mine.newest(), 5) and len(warnings) == 3


def test_waiting_tries_a_save_that_failed_once_more(tmp_path, monkeypatch):
    warnings = []
    mine = store(tmp_path, warnings=warnings)
    mine.save(1, arrays_of(1), {"step": 1})
    with monkeypatch.context() as patched:
        full(patched)
        mine.save_in_background(2, arrays_of(2), {"step": 2}, best=True)
        mine._writer.join()
    mine.wait()
    assert sound(mine.newest(), 2) and mine.best().step == 2
    assert mine.latest == tmp_path / "step-00000002"
    assert len(warnings) == 1
    mine.wait()  # Nothing is left to be tried.
    assert entries(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_directory_with_checkpoints_of_another_run_alone(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(OtherRunError) as caught:
        store(tmp_path, run_id="other").newest()
    assert caught.value.path == tmp_path / "step-00000002"
    assert caught.value.state == {"step": 2}
    # A damaged one may have been of this run: that is no mere mistake of the user's.
    flip(tmp_path / "step-00000002" / "arrays.bin", 5, 1)
    with pytest.raises(ModelFileError) as caught:
        store(tmp_path, run_id="other", warnings=[]).newest()
    assert not isinstance(caught.value, OtherRunError)


def test_close_says_what_failed(tmp_path, monkeypatch):
    warnings = []
    mine = store(tmp_path, warnings=warnings)
    full(monkeypatch)
    mine.save_in_background(2, {}, {})
    mine.close()
    assert len(warnings) == 1


def test_a_bug_in_the_writer_is_no_warning(tmp_path, monkeypatch):
    mine = store(tmp_path)

    def write(descriptor, data):
        raise AssertionError("a bug")

    monkeypatch.setattr(os, "write", write)
    mine.save_in_background(2, {}, {})
    with pytest.raises(AssertionError, match="a bug"):
        mine.close()
    assert entries(tmp_path) == []


@posix
def test_an_interpreter_that_ends_waits_for_the_writer(tmp_path):
    subprocess.run([sys.executable, "-c", END, str(tmp_path)], check=True)
    assert len(store(tmp_path).newest().arrays["a"]) == 5_000_000


END = """
import sys, pathlib, numpy as np
from tfgpu.checkpoint.store import CheckpointStore
store = CheckpointStore(pathlib.Path(sys.argv[1]), run_id="run", warn=print)
store.save_in_background(1, {"a": np.arange(5_000_000)}, {})
"""


# Each call of the file system in turn fails, or is the last that is made.

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir", "ftruncate")
CALLS = tuple(name for name in CALLS if hasattr(os, name))


class Crash(BaseException):
    """The process is gone: whatever it would do now is not done."""


class Calls:
    """Counts the calls of the file system, and lets the k-th fail or be the last.

    A call that is the last is made, or not made, or (a write) made by half.
    """

    def __init__(self, monkeypatch, *, fail_at=None, crash_at=None, done=0.0):
        self.log = []
        self.opened = set()
        self.fail_at, self.crash_at, self.done = fail_at, crash_at, done
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, function):
        def call(*args, **kwargs):
            number = len(self.log)
            self.log.append((name, args))
            if self.crash_at is not None and number >= self.crash_at:
                if number == self.crash_at and self.done:
                    if name == "write":
                        length = int(len(args[1]) * self.done)
                        function(args[0], bytes(args[1])[:length])
                    else:
                        self.note(name, args, function(*args, **kwargs))
                raise Crash
            if number == self.fail_at:
                if name == "close":
                    function(*args)  # Linux closes whatever it says.
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.note(name, args, function(*args, **kwargs))

        return call

    def note(self, name, args, result):
        if name == "open":
            self.opened.add(result)
        elif name == "close":
            self.opened.discard(args[0])
        return result

    def end_process(self):
        """What the operating system does: the files are closed, the locks go."""
        for descriptor in self.opened:
            lock.our_descriptors.discard(descriptor)
            os.close(descriptor)


def prepare(directory):
    """A store that has written two checkpoints, so that the next save removes one."""
    warnings = []
    mine = store(directory, warnings=warnings)
    for step in (1, 2):
        mine.save(step, arrays_of(step), {"step": step})
    return mine, warnings


def log_of_a_save(directory, step):
    mine, _ = prepare(directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = Calls(monkeypatch)
        mine.save(step, arrays_of(step), {"step": step})
    return calls.log


def test_everything_is_on_the_disk_before_the_rename_and_nothing_removed_before_it(tmp_path):
    log = log_of_a_save(tmp_path, 3)
    names = [name for name, _ in log]
    renames = [number for number, name in enumerate(names) if name == "rename"]
    assert len(renames) == 2  # The new one into place, the old one out of it.
    into, out = renames
    assert str(log[into][1][1]).endswith("step-00000003")
    assert str(log[out][1][0]).endswith("step-00000001")
    # arrays.bin, manifest.json and the temporary directory; then the directory of them all.
    assert names[:into].count("fsync") == 3 and "write" not in names[into:]
    assert names[into:out].count("fsync") == 1
    assert not {"unlink", "rmdir"} & set(names[:out])


@pytest.mark.parametrize("step", [3, 2])
def test_a_full_disk_at_every_call(tmp_path, step):
    total = len(log_of_a_save(tmp_path / "count", step))
    outcomes = collections.Counter()
    for number in range(total):
        directory = tmp_path / str(number)
        mine, warnings = prepare(directory)
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = Calls(monkeypatch, fail_at=number)
            try:
                mine.save(step, arrays_of(9), {"step": 9})
            except OSError as error:
                assert error.errno == errno.ENOSPC
                assert str(directory) in error.filename
                outcome = "failed"
            else:
                # The checkpoint was on the disk already.
                assert len(warnings) == 1 and "is saved, but" in warnings[0]
                warnings.clear()
                outcome = "saved"
        renames = [at for at, (name, _) in enumerate(calls.log) if name == "rename"]
        into = renames[0] if renames else total
        found = store(directory, warnings=warnings).newest()
        if number <= into:
            assert outcome == "failed" and sound(found, 2)
        else:
            # In its place: whole, and whether it is on the disk is for the next save to say.
            assert found.state == {"step": 9}
            outcomes["in place"] += 1
        outcomes[outcome] += 1
        if outcome == "failed":
            assert warnings == [] and not any(name.startswith(".") for name in entries(directory))
        mine.save(10, arrays_of(10), {"step": 10})
        mine.save(11, arrays_of(11), {"step": 11})
        assert [name[:13] for name in entries(directory)] == ["step-00000010", "step-00000011"]
        assert sound(store(directory).newest(), 11)
    assert outcomes["failed"] >= 10 and outcomes["saved"] >= 3 and outcomes["in place"] >= 3


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step", [3, 2])
def test_a_crash_at_every_call(tmp_path, step, done):
    total = len(log_of_a_save(tmp_path / "count", step))
    for number in range(total):
        directory = tmp_path / str(number)
        mine, _ = prepare(directory)
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = Calls(monkeypatch, crash_at=number, done=done)
            with pytest.raises(Crash):
                mine.save(step, arrays_of(9), {"step": 9})
        calls.end_process()
        warnings = []
        again = store(directory, warnings=warnings)
        found = again.newest()
        if found.state == {"step": 9}:
            same(found.arrays, arrays_of(9))
            assert found.step == step
        else:
            assert sound(found, 2)
        # The one before the newest is whole as well, until there are two others.
        assert all("is left over" in text for text in warnings) and len(warnings) <= 1
        for name in entries(directory):
            if not name.startswith("."):
                again._read(format.Name.parse(name))
        again.save(10, arrays_of(10), {"step": 10})
        assert not any(name.startswith(".") for name in entries(directory))
        assert sound(store(directory).newest(), 10)


@posix
def test_a_file_size_limit_is_a_full_disk(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["EFBIG", "1", "EFBIG", "1", "3"]
    assert entries(tmp_path) == ["step-00000001", "step-00000003"]


LIMITED = """
import errno, pathlib, resource, sys, numpy as np
from tfgpu.checkpoint.store import CheckpointStore
store = CheckpointStore(pathlib.Path(sys.argv[1]), run_id="run", warn=lambda text: None)
def save(step, *, background=False):
    arrays = {"a": np.full(300_000, step)}
    try:
        if background:
            store.save_in_background(step, arrays, {})
            store.wait()
        else:
            store.save(step, arrays, {})
    except OSError as error:
        print(errno.errorcode[error.errno])
    return store.newest().step
save(1)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
print(save(2))
print(save(2, background=True))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(save(3))
"""


# Killed for real.

SAVE_FOR_EVER = """
import pathlib, sys, numpy as np
from tfgpu.checkpoint.store import CheckpointStore
directory, background = pathlib.Path(sys.argv[1]), sys.argv[2] == "background"
store = CheckpointStore(directory, run_id="run", warn=lambda text: None)
found = store.newest()
step = found.step if found else 0
print("start", step, flush=True)
while True:
    step += 1
    random = np.random.default_rng(step)
    arrays = {
        str(number): random.integers(0, 256, random.integers(0, 200_000), np.uint8)
        for number in range(4)
    }
    if background:
        store.save_in_background(step, arrays, {"step": step}, best=step % 7 == 0)
        store.wait()
    else:
        store.save(step, arrays, {"step": step}, best=step % 7 == 0)
    print("saved", step, flush=True)
"""


def expected_arrays(step):
    random = np.random.default_rng(step)
    return {
        str(number): random.integers(0, 256, random.integers(0, 200_000), np.uint8)
        for number in range(4)
    }


def kill_while_saving(directory, *, kills, seed, background):
    """Kills processes that save, each at another instant; checks what is there after each."""
    delays = random.Random(seed)
    cut_short = newest = 0
    for number in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(directory), background],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout.readline() == f"start {newest}\n"
            time.sleep(delays.uniform(0, 0.15))
            process.kill()
            output = process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        acknowledged = [int(step) for step in re.findall(r"saved (\d+)\n", output)]
        warnings = []
        found = store(directory, warnings=warnings).newest()
        assert all("is left over" in text for text in warnings), (number, warnings)
        cut_short += len(warnings)
        last = max(acknowledged, default=newest)
        if found is None:
            assert last == 0
            continue
        # The one that was being saved may be there.
        assert last <= found.step <= last + 1
        assert found.state == {"step": found.step}
        same(found.arrays, expected_arrays(found.step))
        newest = found.step
        best = store(directory).best()
        assert newest < 7 or best.step == newest // 7 * 7
    return cut_short, newest


@posix
@pytest.mark.parametrize("background", ["inline", "background"])
def test_killed_while_saving(tmp_path, background):
    kill_while_saving(tmp_path, kills=6, seed=0, background=background)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_many_times_while_saving(tmp_path, seed):
    background = "background" if seed % 2 else "inline"
    cut_short, newest = kill_while_saving(tmp_path, kills=40, seed=seed, background=background)
    # Else the kills came at no interesting instants.
    assert cut_short >= 10 and newest >= 20


# The lock of the run directory.

HOLD = """
import pathlib, sys, time
from tfgpu.artifacts.lock import DirectoryLock
with DirectoryLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(directory):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@posix
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(RequestError) as caught, DirectoryLock(tmp_path):
            pytest.fail("it has the lock")
        assert repr(str(tmp_path)) in str(caught.value)
        assert f"in use by process {process.pid};" in str(caught.value)
        # The refused one has not taken the number away.
        assert (tmp_path / ".lock").read_text() == f"{process.pid}\n"
    with DirectoryLock(tmp_path) as lock:
        assert lock.supported
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


@posix
def test_the_same_process_is_refused_too_and_an_error_gives_the_lock_back(tmp_path):
    with contextlib.suppress(ZeroDivisionError), DirectoryLock(tmp_path):
        with pytest.raises(RequestError, match=f"process {os.getpid()}"), DirectoryLock(tmp_path):
            pytest.fail("it has the lock")
        raise ZeroDivisionError
    for _ in range(2):
        with DirectoryLock(tmp_path):
            pass
    assert not lock.our_descriptors


@posix
def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    # In a process of its own: this one may have threads, and those do not go with fork.
    # The child speaks: its parent could before the child has let go of the lock.
    fork = "os.fork() and time.sleep(60)\n    print(os.getpid(), "
    script = "import os\n" + HOLD.replace("print(", fork)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        child = int(process.stdout.readline().split()[0])
        try:
            with pytest.raises(RequestError), DirectoryLock(tmp_path):
                pytest.fail("it has the lock")
            process.kill()
            process.wait()
            with DirectoryLock(tmp_path):
                os.kill(child, 0)  # Still there.
        finally:
            os.kill(child, signal.SIGKILL)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do it")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(RequestError, match="cannot be locked"), DirectoryLock(tmp_path):
        pytest.fail("it has the lock")


def test_a_missing_directory_is_named(tmp_path):
    with (
        pytest.raises(RequestError, match="missing' cannot be locked"),
        DirectoryLock(tmp_path / "missing"),
    ):
        pytest.fail("it has the lock")


@posix
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with DirectoryLock(tmp_path) as lock:
        assert not lock.supported
    left = tmp_path / ".step-00000009-0123456789abcdef.tmp"
    left.mkdir()
    (left / "arrays.bin").touch()
    save(tmp_path, 1)
    assert left.exists()  # Nobody knows whose it is.


def test_no_tensorflow_is_imported():
    script = "import sys, tfgpu.checkpoint.store; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"tensorflow", "keras", "ml_dtypes"} & set(modules)
