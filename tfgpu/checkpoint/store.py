"""The exact checkpoints of one run: each is whole and checked, or it does not count.

A checkpoint (`tfgpu.checkpoint.format` has its files) is written to a temporary directory beside
the others, flushed to the disk and then renamed, so a process that is killed at any instant leaves
the checkpoints that were there. Only after the rename is the oldest one removed, and that by a
rename first.

What is newer is read from the names alone. A run that goes on from an older checkpoint, since the
newer ones are damaged, comes by the same steps again: its checkpoints are called `step-00001230.1`
and count as newer than every one without a number (then `.2`, and so on). So a step is saved again
without a moment at which it has no checkpoint, and a damaged one stays where it is until training
has passed its step.

A directory has one writer at a time: a lock keeps other processes out, and within a process the
last store takes over from the one before.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfgpu.artifacts import files
from tfgpu.artifacts.lock import DirectoryLock, in_use, lock, unlock
from tfgpu.checkpoint.format import (
    ARRAYS,
    MANIFEST,
    TEMPORARY,
    Checkpoint,
    Damaged,
    Name,
    OfAnotherRun,
    Plan,
    create_file,
    read_arrays,
    read_manifest,
    temporary_name,
    write_all,
)
from tfgpu.errors import ModelFileError


class OtherRunError(ModelFileError):
    """There are checkpoints, and all that are sound are of another run.

    Attributes:
        path: The newest one.
        state: The state in it.
    """

    def __init__(self, path: Path, state: dict[str, Any]):
        super().__init__(f"{path} is a checkpoint of another run")
        self.path = path
        self.state = state


_writers: weakref.WeakValueDictionary[Path, CheckpointStore] = weakref.WeakValueDictionary()


class CheckpointStore:
    """The checkpoints of one run.

    Calls come from one thread. `warn` is called from that thread alone: what the writer thread of
    `save_in_background` has to say is said by the next call of any method.

    What is kept: the newest `keep` steps and the newest checkpoint that was saved with `best`.
    Only those known to be sound count, that is, which this object wrote or read. Others stay until
    there are `keep` sound newer ones and training has passed their step.

    Attributes:
        directory: Where the checkpoints lie; made by the first save.
    """

    def __init__(self, directory: Path, *, run_id: str, keep: int = 2, warn: Callable[[str], None]):
        """Touches no file.

        Args:
            directory: Where the checkpoints lie.
            run_id: What tells this run from others; checkpoints of others are passed over.
            keep: How many of the newest to keep, beside the best; at least 1.
            warn: Takes one line of text for the user.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = Path(directory)
        self._run_id = run_id
        self._keep = keep
        self._warn = warn
        self._sound: set[Name] = set()
        self._writer: threading.Thread | None = None
        self._to_say: list[str] = []  # The writer's warnings, for the caller's thread.
        self._failure: BaseException | None = None  # Of the last background save.
        self._failure_said = False
        self._failed: Plan | None = None  # What it was to write.
        self._lock: DirectoryLock | None = None

    def save(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Saves; the checkpoint is on the disk when this returns.

        Waits for a background save that is under way. A step that was saved before is saved
        beside its old checkpoint, which goes only then.

        Args:
            step: The training steps done.
            arrays: The arrays by name; booleans, numbers of any size and bfloat16.
            state: What JSON holds; NaN and the infinities are kept.
            best: Whether this is the best checkpoint until now.

        Returns:
            The checkpoint's directory.

        Raises:
            OSError: It cannot be written, as on a full disk; `filename` is the path. The older
                checkpoints stay and nothing of this one does.
            TypeError: An array or the state holds something else.
        """
        plan = Plan(step, arrays, state, best=best, run_id=self._run_id)
        self._settle()
        self._failure = self._failed = None
        self.lock()
        try:
            return self._write(plan)
        finally:
            self._say()

    def save_in_background(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> None:
        """Saves in another thread.

        At most one save is under way: a call while one is waits until it is done, so that saves
        that take longer than the time between them slow training down and do not fill the memory.

        A save that fails (OSError) is said in a warning by the next call of any method, and that
        is all: the run goes on, and the next save tries again. `wait` tries the same again.

        Args:
            step: As in `save`.
            arrays: As in `save`; not to be modified until the save is done.
            state: As in `save`; the caller may modify it at once.
            best: As in `save`.

        Raises:
            TypeError: An array or the state holds something that cannot be saved.
        """
        plan = Plan(step, arrays, state, best=best, run_id=self._run_id)
        self._settle()
        self._failure = self._failed = None
        try:
            self.lock()
        except OSError as error:
            self._failed_with(error, plan)
            return
        # No daemon: an interpreter that ends waits until the checkpoint is whole.
        self._writer = threading.Thread(
            target=self._write_quietly, args=(plan,), name="tfgpu-checkpoint"
        )
        self._writer.start()

    def poll(self) -> None:
        """Says what a finished background save has to say; never waits."""
        if self._writer is None or not self._writer.is_alive():
            self._settle()

    def wait(self) -> None:
        """Waits until no save is under way; one in the background that failed is tried once more.

        Raises:
            OSError: It failed again, and no save has come since.
        """
        self._settle()
        if self._failed is not None:
            try:
                self._write(self._failed)
            finally:
                self._say()
            self._failure = self._failed = None

    def close(self) -> None:
        """Waits until no save is under way, and lets others write.

        A save that failed is said in a warning.
        """
        try:
            self._settle()
        finally:
            self._unlock()

    def lock(self) -> None:
        """Keeps other writers out until `close`; every save does.

        Raises:
            RequestError: Another process writes to the directory, or it cannot be written.
            OSError: The disk is full.
        """
        if self._lock is not None:
            return
        files.make_durable(self.directory)
        place = self.directory.resolve()
        # Nobody closes a store whose training was left by an exception.
        if (before := _writers.get(place)) is not None:
            before.close()
        taken = DirectoryLock(
            self.directory, name="directory", another="another directory", file=False
        )
        taken.__enter__()
        self._lock = taken
        _writers[place] = self

    def _unlock(self) -> None:
        if self._lock is not None:
            held, self._lock = self._lock, None
            held.__exit__()
            _writers.pop(self.directory.resolve(), None)

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint known to be sound: one that this object wrote or read."""
        name = max(self._sound & set(self._names()), default=None)
        return None if name is None else self.directory / str(name)

    def newest(self, known: Checkpoint | None = None) -> Checkpoint | None:
        """Reads the newest sound checkpoint.

        Those that are newer and damaged are named in warnings, and so is what is left of a save
        that was cut short.

        Args:
            known: One that was read before. If it is the newest, its arrays are not read again.

        Returns:
            The checkpoint; None when there has been none.

        Raises:
            OtherRunError: There are sound checkpoints, and all of them are of another run.
            ModelFileError: There are checkpoints and none is sound.
        """
        self._settle()
        try:
            left_over, names = self._left_over(), self._names()
        except OSError as error:
            raise ModelFileError(
                f"{str(self.directory)!r} cannot be read ({error.strerror})"
            ) from error
        for name in left_over:
            self._warn(
                f"{self.directory / name} is left over from a process that was stopped; it is "
                "ignored, and removed after the next save"
            )
        damages: list[tuple[Name, str]] = []
        others: list[OtherRunError] = []
        found = None
        for candidate in sorted(names, reverse=True):
            try:
                found = self._read(candidate, known)
                break
            except Damaged as damage:
                damages.append((candidate, str(damage)))
                if isinstance(damage, OfAnotherRun):
                    others += self._other(candidate, damage)
        if found is None and others and len(others) == len(damages):
            raise others[0]
        for passed in damages:
            self._warn_of(*passed, "looking for an older one")
        if found is None and damages:
            shown = "; ".join(f"{name} ({why})" for name, why in damages[:3])
            shown += "; ..." if len(damages) > 3 else ""
            raise ModelFileError(
                f"{str(self.directory)!r} holds no checkpoint that can be used: {shown}; put one "
                "back, or start again with another --run_dir"
            )
        return found

    def best(self) -> Checkpoint | None:
        """Reads the newest sound checkpoint that was saved with `best`.

        Those that are newer, and damaged, are named in warnings.

        Returns:
            The checkpoint; None when no sound one was saved with `best`.
        """
        self._settle()
        for name in sorted(self._names(), reverse=True):
            try:
                if not self._manifest(name)["best"]:
                    continue
                return self._read(name)
            except Damaged as damage:
                self._warn_of(name, str(damage), "looking for an older best one")
        return None

    def _warn_of(self, name: Name, damage: str, then: str) -> None:
        self._warn(f"checkpoint {self.directory / str(name)} cannot be used: {damage}; {then}")

    # The writer thread.

    def _write_quietly(self, plan: Plan) -> None:
        try:
            self._write(plan)
        except BaseException as error:  # For the caller's thread.
            self._failed_with(error, plan)

    def _failed_with(self, error: BaseException, plan: Plan) -> None:
        self._failure, self._failed, self._failure_said = error, plan, False

    def _settle(self) -> None:
        """Waits for the writer and says what it has to say."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self._say()
        if self._failure is not None and not self._failure_said:
            self._failure_said = True
            if not isinstance(self._failure, OSError):
                raise self._failure  # No full disk or the like, but a bug.
            self._warn(
                f"no checkpoint could be saved ({self._failure.strerror} while writing "
                f"{self._failure.filename}); the older ones stay, and the next save tries again"
            )

    def _say(self) -> None:
        while self._to_say:
            self._warn(self._to_say.pop(0))

    # Writing.

    def _write(self, plan: Plan) -> Path:
        """Writes a checkpoint and then removes what is no longer needed."""
        name = self._name_for(plan.step)
        place = self.directory / str(name)
        temporary = self.directory / temporary_name(name)
        arrays: int | None = None
        try:
            with files.named(temporary):
                os.mkdir(temporary)
            with files.named(temporary / ARRAYS):
                arrays = create_file(temporary / ARRAYS)
                # Held until the rename: it tells others that the directory is not left over.
                if sys.platform != "win32":
                    lock(arrays)
                plan.write_arrays(arrays)
                os.fsync(arrays)
            if sys.platform == "win32":  # A directory with open files cannot be renamed there.
                os.close(arrays)
                arrays = None
            with files.named(temporary / MANIFEST):
                manifest = create_file(temporary / MANIFEST)
                try:
                    write_all(manifest, plan.manifest(name))
                    os.fsync(manifest)
                finally:
                    os.close(manifest)
            files.sync_directory(temporary)
            with files.named(place):
                os.rename(temporary, place)
        except BaseException:
            # By name, so that it does nothing when an interrupt came right after the rename.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            if arrays is not None:
                with files.named(place):
                    unlock(arrays)
        # Nothing is removed before the new one is sure to be found after a power failure too.
        files.sync_directory(self.directory)
        self._sound.add(name)
        try:
            self._remove_unneeded(name)
        except OSError as error:
            self._to_say.append(
                f"the checkpoint {place} is saved, but an old one could not be removed "
                f"({error.strerror}: {error.filename})"
            )
        return place

    def _name_for(self, step: int) -> Name:
        """A name that is newer than every other."""
        newest = max(self._names(), default=Name(0, -1))
        return Name(newest.generation + (newest.step >= step), step)

    def _remove_unneeded(self, newest: Name) -> None:
        """Removes what `newest`, just saved, and the others known to be sound make superfluous."""
        names = sorted(self._names(), reverse=True)
        kept: dict[int, Name] = {}  # By step: two checkpoints of one step are as good as one.
        for name in names:
            if name in self._sound and len(kept) < self._keep:
                kept.setdefault(name.step, name)
        needed = set(kept.values())
        for name in names:
            # A best one that nobody has read may be damaged: then an older one is the best.
            if self._is_best(name):
                needed.add(name)
                if name in self._sound:
                    break
        for name in names:
            superseded = name in self._sound or (
                len(kept) == self._keep and name < min(kept.values())
            )
            if name not in needed and superseded and name.step <= newest.step:
                # Renamed first, so that no half of a checkpoint bears a checkpoint's name.
                temporary = self.directory / temporary_name(name)
                with files.named(self.directory / str(name)):
                    os.rename(self.directory / str(name), temporary)
                _remove(temporary)
        for left in self._left_over():
            _remove(self.directory / left)

    def _other(self, name: Name, damage: OfAnotherRun) -> list[OtherRunError]:
        """The error for a checkpoint of another run; [] when it is damaged as well."""
        path = self.directory / str(name)
        try:
            read_arrays(path, damage.manifest)
        except Damaged:
            return []
        return [OtherRunError(path, damage.manifest["state"])]

    def _is_best(self, name: Name) -> bool:
        try:
            return self._manifest(name)["best"]
        except Damaged:
            return False

    # Reading.

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def _names(self) -> list[Name]:
        return [name for entry in self._entries() if (name := Name.parse(entry)) is not None]

    def _left_over(self) -> list[str]:
        """Temporary directories whose process is gone."""
        return [
            entry
            for entry in sorted(self._entries())
            if TEMPORARY.fullmatch(entry) and not in_use(self.directory / entry / ARRAYS)
        ]

    def _read(self, name: Name, known: Checkpoint | None = None) -> Checkpoint:
        """Reads and checks everything, but for the arrays of one that was read before.

        Raises:
            Damaged: It is not sound; says why.
        """
        path, manifest = self.directory / str(name), self._manifest(name)
        digest = manifest["sha256"]
        same = known is not None and (known.path, known.sha256) == (path, digest)
        arrays = known.arrays if known is not None and same else read_arrays(path, manifest)
        self._sound.add(name)
        state = manifest["state"]
        return Checkpoint(path=path, step=name.step, arrays=arrays, state=state, sha256=digest)

    def _manifest(self, name: Name) -> dict[str, Any]:
        return read_manifest(self.directory / str(name), run_id=self._run_id)


def _remove(path: Path) -> None:
    """Removes a temporary directory, or a link to a checkpoint elsewhere."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
