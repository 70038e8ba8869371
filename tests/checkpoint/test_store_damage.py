"""Checkpoints that are damaged, cut short or another run's are named and passed over."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from stores import arrays_of, entries, flip, posix, save, sound, store

from tfgpu.checkpoint import format
from tfgpu.checkpoint.store import OtherRunError
from tfgpu.errors import ModelFileError


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
