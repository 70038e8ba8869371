"""What is saved comes back, and what is kept of it."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from stores import arrays_of, entries, same, save, sound, store

from tfgpu.checkpoint import format

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


def test_the_arrays_of_one_that_was_read_before_are_not_read_again(tmp_path, monkeypatch):
    save(tmp_path, 1)
    known = store(tmp_path).newest()
    monkeypatch.setattr("tfgpu.checkpoint.store.read_arrays", lambda *given: pytest.fail("read"))
    again = store(tmp_path).newest(known)
    assert again.arrays is known.arrays and again.step == 1


def test_one_that_was_read_before_and_is_another_now_is_read(tmp_path):
    save(tmp_path, 1)
    known = store(tmp_path).newest()
    shutil.rmtree(tmp_path / "step-00000001")
    store(tmp_path).save(1, arrays_of(2), {"step": 1})
    same(store(tmp_path).newest(known).arrays, arrays_of(2))


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


def test_no_tensorflow_is_imported():
    script = "import sys, tfgpu.checkpoint.store; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"tensorflow", "keras", "ml_dtypes"} & set(modules)
