"""One writer at a time in a directory of checkpoints."""

import errno
import signal

import numpy as np
import pytest
from stores import posix, save, sound, store, writer

from tfgpu.errors import RequestError


@pytest.fixture
def another(tmp_path):
    """A process that writes to the directory."""
    with writer(tmp_path) as process:
        yield process


@posix
@pytest.mark.parametrize("method", ["save", "save_in_background"])
def test_a_second_process_is_refused(tmp_path, another, method):
    with pytest.raises(RequestError, match=f"in use by .*{another.pid}.*name another directory"):
        getattr(store(tmp_path), method)(2, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@posix
def test_a_killed_writer_leaves_the_directory_free(tmp_path, another):
    another.send_signal(signal.SIGKILL)
    another.wait()
    assert save(tmp_path, 2).name == "step-00000002"


@posix
def test_reading_waits_for_no_writer(tmp_path, another):
    assert store(tmp_path).newest().step == 1


def test_the_last_store_of_a_process_takes_over(tmp_path):
    first = store(tmp_path)
    first.save_in_background(1, {"a": np.arange(2_000_000)}, {})
    second = store(tmp_path)
    second.lock()
    # What the first was writing is whole before the second begins.
    assert second.newest().step == 1
    second.save(2, {}, {})
    assert second.newest().step == 2


def test_a_closed_store_may_go_on(tmp_path):
    mine = store(tmp_path)
    mine.save(1, {}, {})
    mine.close()
    mine.save(2, {}, {})
    assert mine.newest().step == 2


@posix
def test_a_closed_store_lets_others_write(tmp_path):
    mine = store(tmp_path)
    mine.save(1, {}, {})
    mine.close()
    with writer(tmp_path):
        pass


@posix
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".step-00000009-0123456789abcdef.tmp"
    left.mkdir()
    (left / "arrays.bin").touch()
    save(tmp_path, 1)
    assert left.exists()  # Nobody knows whose it is.
    assert sound(store(tmp_path).newest(), 1)
