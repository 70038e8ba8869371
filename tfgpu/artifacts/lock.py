"""Locks: keep a second process out of a directory, and tell whether a file is being written.

The operating system drops a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from tfgpu.errors import DISK_FULL, RequestError

FLAG_BINARY = getattr(os, "O_BINARY", 0)  # Windows alone has it.

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, getattr(errno, "EOPNOTSUPP", errno.ENOSYS), errno.EINVAL}


class DirectoryLock:
    """Keeps a second process out of a directory while this one is in the `with` block.

    The operating system drops the lock when the process ends, however it ends. The file `.lock`
    stays: removing it would let two processes hold locks on two files of that name.

    Attributes:
        path: The directory.
        supported: Whether the file system has locks, known inside the block. Where it has none
            (some network file systems) nothing is kept out.
    """

    def __init__(self, path: Path, *, name: str = "run_dir", another: str = "another --run_dir"):
        """Takes no lock yet.

        Args:
            path: The directory.
            name: What the messages call it.
            another: What they propose in its place.
        """
        self.path = Path(path)
        self._name = f"{name} {str(self.path)!r}"
        self._another = another
        self.supported = True
        self._descriptor: int | None = None

    def __enter__(self) -> DirectoryLock:
        """Takes the lock.

        Raises:
            RequestError: Another process has it, or the directory cannot be written.
            OSError: The disk is full.
        """
        file = self.path / ".lock"
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | FLAG_BINARY, 0o666)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise RequestError(
                f"{self._name} cannot be locked ({error.strerror}); name another"
            ) from error
        locked = lock(descriptor)
        if locked is False:
            try:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
            finally:
                unlock(descriptor)
            process = f"process {holder}" if holder.isdecimal() else "another process"
            raise RequestError(
                f"{self._name} is in use by {process}; wait for it, stop it, or name "
                f"{self._another}"
            )
        self.supported = locked is not None
        self._descriptor = descriptor
        # The number only helps the reader of the message: a full disk does not matter here.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        return self

    def __exit__(self, *_: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            unlock(descriptor)


def in_use(file: Path) -> bool:
    """Whether a process holds the lock of a file that it is writing."""
    try:
        descriptor = os.open(file, os.O_RDWR | FLAG_BINARY)
    except FileNotFoundError:
        # Killed before it made the file, or being removed. That it makes it right now is a
        # question of microseconds, and then that save fails and is tried again.
        return False
    except OSError:
        return True  # Not ours to judge.
    if sys.platform == "win32":  # An open file cannot be removed there, which is lock enough.
        os.close(descriptor)
        return False
    locked = lock(descriptor)
    unlock(descriptor)
    return locked is not True


# A child made by fork shares its parent's locks: one that outlives a killed parent would keep the
# run directory locked for ever.
our_descriptors: set[int] = set()


def _forget_descriptors() -> None:
    while our_descriptors:
        with contextlib.suppress(OSError):
            os.close(our_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_descriptors)


if sys.platform == "win32":
    import msvcrt

    def lock(descriptor: int) -> bool | None:
        """Locks a file; False when another has it."""
        our_descriptors.add(descriptor)
        # A byte far behind the end: the others cannot read what is locked.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def lock(descriptor: int) -> bool | None:
        """Locks a file; False when another has it, None when the file system has no locks."""
        our_descriptors.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in _NO_LOCKS else False
        return True


def unlock(descriptor: int) -> None:
    """Gives up the lock of a file and closes it, once; the child of a fork has done so already."""
    if descriptor not in our_descriptors:
        return
    our_descriptors.discard(descriptor)
    if sys.platform != "win32":
        # Closing is not enough while a child that another thread starts has a copy of it.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
