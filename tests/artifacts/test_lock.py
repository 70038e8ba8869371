"""The locks of directories."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest

from tfgpu.artifacts import lock
from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.errors import RequestError

posix = pytest.mark.skipif(sys.platform == "win32", reason="flock and fork are POSIX")

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


@posix
def test_a_directory_is_locked_without_a_file_in_it(tmp_path):
    with DirectoryLock(tmp_path, name="backup", another="another directory", file=False):
        with (
            pytest.raises(
                RequestError, match=f"backup '{tmp_path}' is in use by .*name another dir"
            ),
            DirectoryLock(tmp_path, name="backup", another="another directory", file=False),
        ):
            pytest.fail("it has the lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="Linux tells who has a lock")
def test_the_holder_of_a_directory_is_named(tmp_path):
    with DirectoryLock(tmp_path, file=False):
        with (
            pytest.raises(RequestError, match=f"process {os.getpid()};"),
            DirectoryLock(tmp_path, file=False),
        ):
            pytest.fail("it has the lock")


@posix
def test_where_directories_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    import fcntl

    flock = fcntl.flock

    def of_files(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    with DirectoryLock(tmp_path, file=False) as held:
        assert held.supported
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


@posix
def test_a_forgotten_lock_is_given_back(tmp_path):
    DirectoryLock(tmp_path).__enter__()
    with DirectoryLock(tmp_path):
        pass
