"""Locks: keep a second process out of a directory, and tell whether a file is being written.

The operating system drops a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import weakref
from pathlib import Path

from tfgpu.errors import DISK_FULL, RequestError

FLAG_BINARY = getattr(os, "O_BINARY", 0)  # Windows alone has it.

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF}
_NO_LOCKS.add(getattr(errno, "EOPNOTSUPP", errno.ENOSYS))


_LOOKED_AT = 0.02
"""Seconds after which a lock that was refused is asked for once more."""


class DirectoryLock:
    """Keeps a second process out of a directory while this one is in the `with` block.

    Attributes:
        path: The directory.
        supported: Whether the file system has locks, known inside the block. Where it has none
            (some network file systems) nothing is kept out.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "run_dir",
        another: str = "another --run_dir",
        file: bool = True,
    ):
        """Takes no lock yet.

        Args:
            path: The directory.
            name: What the messages call it.
            another: What they propose in its place.
            file: Whether the lock is one of a file `.lock`, which stays: removing it would let two
                processes hold locks on two files of that name. Else it is one of the directory
                itself, or of the file where directories cannot be locked.
        """
        self.path = Path(path)
        self.supported = True
        self._name = f"{name} {str(self.path)!r}"
        self._another = another
        self._file = file or sys.platform == "win32"
        self._release: weakref.finalize[..., DirectoryLock] | None = None
        self._descriptor = -1

    def __enter__(self) -> DirectoryLock:
        """Takes the lock.

        Raises:
            RequestError: Another process has it, or the directory cannot be written.
            OSError: The disk is full.
        """
        file = self._file
        try:
            descriptor, locked = self._lock(file=file)
            if locked is None and not file:
                unlock(descriptor)
                file = True
                descriptor, locked = self._lock(file=file)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise RequestError(
                f"{self._name} cannot be locked ({error.strerror}); name another"
            ) from error
        if locked is False:
            try:
                holder = os.read(descriptor, 32).decode(errors="replace") if file else ""
                number = holder.strip() or _holder(descriptor)
            finally:
                unlock(descriptor)
            process = f"process {number}" if number.isdecimal() else "another process"
            raise RequestError(
                f"{self._name} is in use by {process}; wait for it, stop it, or name "
                f"{self._another}"
            )
        self.supported = locked is not None
        # Also when nobody leaves the block, and this object is forgotten.
        self._release = weakref.finalize(self, _forget, descriptor)
        self._descriptor = descriptor
        if file:
            # The number only helps the reader of the message: a full disk does not matter here.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, b"%d\n" % os.getpid())
        return self

    def __exit__(self, *_: object) -> None:
        if self._release is not None and self._release.detach():
            unlock(self._descriptor)

    def _lock(self, *, file: bool) -> tuple[int, bool | None]:
        if file:
            flags = os.O_RDWR | os.O_CREAT | FLAG_BINARY
            descriptor = os.open(self.path / ".lock", flags, 0o666)
        else:
            descriptor = os.open(self.path, os.O_RDONLY)
        locked = lock(descriptor)
        if locked is False:
            # `held` has a shared lock for some microseconds.
            time.sleep(_LOOKED_AT)
            locked = lock(descriptor)
        return descriptor, locked


def _forget(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        unlock(descriptor)


def _holder(descriptor: int) -> str:
    """The number of the process that has the lock of a file; "" where nobody tells."""
    try:
        inode = str(os.fstat(descriptor).st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    # "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF"
    rows = [line.split() for line in lines if " FLOCK " in line and "->" not in line]
    found = (row[4] for row in rows if len(row) > 5 and row[5].rpartition(":")[2] == inode)
    return next(found, "")


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


def held(file: Path) -> bool:
    """Whether a process holds the lock of a file; for who only looks, and may not write there.

    False too where the file system has no locks.
    """
    if sys.platform == "win32":
        return file.exists() and in_use(file)
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared: two who look are not in each other's way.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(descriptor)
    return False


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
