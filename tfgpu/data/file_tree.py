"""The files below a folder that its owner means, without what systems and programs leave there.

Real folders are walked first, then links. A link is followed once, and not into what is there
already: the same picture under two names would be in training and in test at once.
"""

from __future__ import annotations

import collections
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfgpu.errors import DataError, shown

HIDDEN = "hidden or of a system"
OTHER = "of other kinds"
AGAIN = "a second time, by a link"
NOWHERE = "a link that leads nowhere"
SPECIAL = "no file that can be read"

# In lower case. Every name that begins with a dot is left too: .ipynb_checkpoints, .Trash-0,
# .DS_Store, and ._1.jpg, which holds what macOS knows of 1.jpg.
_OF_SYSTEMS = frozenset(
    {
        *("__macosx", "icon\r", "desktop db", "desktop df", "temporary items"),  # macOS
        *("network trash folder", "thefindbyfile folder", "thevolumesettingsfolder"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "recycler", "system volume information"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Network disks
        *("lost+found", "__pycache__"),
    }
)

_SHOWN = 3  # Examples of each remark.


class Remarks:
    """What there is to say of many files: how many each remark is true of, and the first of them.

    Safe to be added to in several threads.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, remark: str, example: str) -> None:
        """Counts a file.

        Args:
            remark: What is true of it.
            example: What to show of it.
        """
        with self._lock:
            self.counts[remark] = self.counts.get(remark, 0) + 1
            examples = self._examples.setdefault(remark, [])
            if len(examples) < _SHOWN and example not in examples:
                examples.append(example)

    def to_json(self) -> list[Any]:
        """For `merge` of another process."""
        return [[remark, count, self._examples[remark]] for remark, count in self.counts.items()]

    def merge(self, others: list[Any]) -> None:
        """Adds what another process has counted."""
        for remark, count, examples in others:
            self.counts[remark] = self.counts.get(remark, 0) + count
            mine = self._examples.setdefault(remark, [])
            mine += [each for each in examples if each not in mine][: _SHOWN - len(mine)]

    def in_order(self) -> Remarks:
        """The same by the names of the examples, where several threads have added them."""
        found = Remarks()
        found._examples = {remark: sorted(some) for remark, some in self._examples.items()}
        found.counts = {
            remark: self.counts[remark]
            for remark, _ in sorted(found._examples.items(), key=lambda item: item[1])
        }
        return found

    def __str__(self) -> str:
        """All on one line: "3 hidden or of a system (.DS_Store, ...); 1 of other kinds (.txt)"."""
        return "; ".join(
            f"{count:,} {remark} ({', '.join(self._examples[remark])}"
            f"{', ...' if count > len(self._examples[remark]) else ''})"
            for remark, count in self.counts.items()
        )


def is_of_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that a system leaves."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def subdirectories(directory: str, left: Remarks | None = None) -> list[str]:
    """The sorted names of the folders in one, without those of systems.

    Args:
        directory: Where to look.
        left: Gets those that were left out.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise unreadable(directory, error) from None
    if left is not None:
        for name in filter(is_of_system, found):
            left.add(HIDDEN, shown(name))
    return [name for name in found if not is_of_system(name)]


def unreadable(folder: str, error: OSError) -> DataError:
    """What is wrong with a folder."""
    return DataError(f"the folder {shown(folder)} cannot be read: {error.strerror}")


_Id = tuple[int, int]


class FileTree:
    """The files with certain extensions below some folders.

    Args:
        extensions: In lower case, with the dot.
        root: What paths in messages are relative to, and what a link may not lead back into.

    Attributes:
        left: What was left out.
        conflicts: (path, path) of files and folders that two of the folders hold, by links.
        has_links: Whether a file may have another name somewhere else.
    """

    def __init__(self, extensions: tuple[str, ...], *, root: str):
        self.left = Remarks()
        self.conflicts: list[tuple[str, str]] = []
        self.has_links = False
        self._extensions = extensions
        self._root = root
        self._links: collections.deque[tuple[str, str]] = collections.deque()
        # Of folders all; of files those that have, or may have, a second name.
        self._known: dict[_Id, tuple[str, str]] = {}
        self._walked: dict[_Id, str] = {}  # The key of each folder whose files are taken.

    def find(
        self,
        folders: Iterable[tuple[str, str]],
        on_error: Callable[[DataError], None] | None = None,
    ) -> Iterator[tuple[str, str]]:
        """Yields (key, path) of the files, of each folder in a fixed order.

        Files come before folders, both sorted; what is behind links comes last. No more is read
        than the files taken need.

        Args:
            folders: (key, path) of each.
            on_error: Gets what is wrong with a folder that cannot be read; None raises it.

        Raises:
            DataError: A folder cannot be read.
        """

        def fail(error: DataError) -> None:
            if on_error is None:
                raise error
            on_error(error)

        if os.path.isdir(self._root):
            self._known[_identity(os.stat(self._root))] = "", self._root
        for key, folder in folders:
            self.has_links |= os.path.islink(folder)
            yield from self._below(key, folder, fail, named=folder == self._root)
        while self._links:
            key, path = self._links.popleft()
            try:
                status = os.stat(path)  # Of what it leads to.
            except OSError:  # Nowhere, or in a circle of links.
                self._leave(NOWHERE, path)
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._below(key, path, fail)
            elif not path.lower().endswith(self._extensions):
                self._leave(OTHER, path)
            elif not stat.S_ISREG(status.st_mode):
                self._leave(SPECIAL, path)
            elif self._is_new(key, path, status, self._real_folder(path)):
                yield key, path

    def _below(
        self, key: str, folder: str, fail: Callable[[DataError], None], *, named: bool = False
    ) -> Iterator[tuple[str, str]]:
        """The files below a folder; links are put aside."""
        try:
            status = os.stat(folder)
            if not named and not self._is_new(key, folder, status):
                return
            self._walked[_identity(status)] = key
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            fail(unreadable(folder, error))
            return
        subfolders = []
        for entry in found:
            if is_of_system(entry.name):
                self._leave(HIDDEN, entry.path)
            elif entry.is_symlink():
                self.has_links = True
                self._links.append((key, entry.path))
            elif entry.is_dir():
                subfolders.append(entry.path)
            elif not entry.name.lower().endswith(self._extensions):
                self._leave(OTHER, entry.path)
            elif not entry.is_file():
                self._leave(SPECIAL, entry.path)
            else:
                status = entry.stat()
                if status.st_nlink > 1:
                    self.has_links = True
                    if not self._is_new(key, entry.path, status):
                        continue
                yield key, entry.path
        for subfolder in subfolders:
            yield from self._below(key, subfolder, fail)

    def _is_new(
        self, key: str, path: str, status: os.stat_result, folder: _Id | None = None
    ) -> bool:
        """Whether a file or folder was not met before; notes it.

        Args:
            key: Of the folder it is below.
            path: Its path.
            status: Of itself, not of a link.
            folder: Of a link to a file, the folder that the file lies in.
        """
        identity = _identity(status)
        before = self._known.get(identity)
        if before is None and folder is not None and folder in self._walked:
            before = self._walked[folder], os.path.realpath(path)
        if before is not None and status.st_ino:  # 0: a file system without numbers.
            if before[0] not in ("", key):
                self.conflicts.append((path, before[1]))
            self._leave(AGAIN, path)
            return False
        self._known[identity] = key, path
        return True

    def _real_folder(self, link: str) -> _Id | None:
        """The folder that a link's file lies in, where `find` takes that file."""
        real = os.path.realpath(link)
        if is_of_system(os.path.basename(real)) or not real.lower().endswith(self._extensions):
            return None
        return _identity(os.stat(os.path.dirname(real)))

    def _leave(self, remark: str, path: str) -> None:
        extension = os.path.splitext(path)[1]
        if remark == OTHER and extension:
            self.left.add(remark, shown(extension))
        else:
            self.left.add(remark, shown(os.path.relpath(path, self._root)))


def _identity(status: os.stat_result) -> _Id:
    return status.st_dev, status.st_ino
