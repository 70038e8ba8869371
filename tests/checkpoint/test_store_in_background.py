"""What is saved in the background, and what is said when that fails."""

import errno
import os
import subprocess
import sys
import threading

import pytest
from stores import arrays_of, entries, posix, sound, store


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
