"""Calls that fail and processes that die while saving leave a whole checkpoint."""

import collections
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from stores import arrays_of, entries, posix, same, sound, store

from tfgpu.artifacts import lock
from tfgpu.checkpoint import format

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
