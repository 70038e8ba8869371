"""The files of exact checkpoints: each is whole and checked, or it does not count.

    checkpoints/step-00001230/arrays.bin     the arrays, little-endian, one after another
    checkpoints/step-00001230/manifest.json  the state, the index of arrays.bin, the checksums

A checkpoint is written to a temporary directory beside the others, flushed to the disk and then
renamed, so a process that is killed at any instant leaves the checkpoints that were there. Only
after the rename is the oldest one removed, and that by a rename first.

What is newer is read from the names alone. A run that goes on from an older checkpoint, since the
newer ones are damaged, comes by the same steps again: its checkpoints are called `step-00001230.1`
and count as newer than every one without a number (then `.2`, and so on). So a step is saved again
without a moment at which it has no checkpoint, and a damaged one stays where it is until training
has passed its step.

Every byte is covered. Arrays carry a CRC-32C each, which finds every change of up to 32 bits in a
row with certainty and any other but for one in 2**32; it takes 0.1 s of processor time a GB where
SHA-256 takes 0.56 s with the processor's own instructions for it, and the writer shares the
processor with training. The manifest carries the SHA-256 of its own text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tfgpu.artifacts import files
from tfgpu.errors import ModelFileError, RequestError

FORMAT = 1

_ARRAYS = "arrays.bin"
_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(?P<step>\d{8,})(?:\.(?P<generation>[1-9]\d*))?")
_TEMPORARY = re.compile(r"\.step-[\d.]+-[0-9a-f]{16}\.tmp")

# The manifest starts with its own checksum; the rest of its text is what the checksum is of.
_HEAD = b'{\n"sha256": "'
_DIGEST_LENGTH = 64
_FIELDS = frozenset({"run_id", "name", "step", "best", "nbytes", "state", "arrays"})

# Of the kinds NumPy knows by itself; of others (bfloat16) ml_dtypes knows the name.
_NUMPY_DTYPES = frozenset(
    ["bool", "complex64", "complex128", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)

# google_crc32c holds the interpreter while it runs: 0.1 ms for so many bytes, which then are
# still in the processor's cache when they are written.
_CHUNK = 1 << 20

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, getattr(errno, "EOPNOTSUPP", errno.ENOSYS), errno.EINVAL}

_FLAG_BINARY = getattr(os, "O_BINARY", 0)  # Windows alone has it.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a sound checkpoint holds.

    Attributes:
        path: Its directory.
        step: The training steps done when it was saved.
        arrays: The arrays by name, in the order in which they were saved; writable.
        state: Counters, positions, settings, as JSON holds them (a tuple has become a list).
    """

    path: Path
    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


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


class CheckpointStore:
    """The checkpoints of one run: written by one process at a time, which `RunLock` sees to.

    Calls come from one thread. `warn` is called from that thread alone: what the writer thread of
    `save_in_background` has to say is said by the next call of any method.

    What is kept: the newest `keep` steps and the newest checkpoint that was saved with `best`.
    Only those known to be sound count, that is, which this object wrote or read. Others stay until
    there are `keep` sound newer ones and training has passed their step.

    Attributes:
        directory: Where the checkpoints lie; made by the first save.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str,
        keep: int = 2,
        warn: Callable[[str], None],
    ):
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
        self._sound: set[_Name] = set()
        self._writer: threading.Thread | None = None
        self._to_say: list[str] = []  # The writer's warnings, for the caller's thread.
        self._failure: BaseException | None = None  # Of the last background save.
        self._failure_said = False
        self._failed: _Plan | None = None  # What it was to write.

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
        plan = _Plan(step, arrays, state, best=best, run_id=self._run_id)
        self._settle()
        self._failure = self._failed = None
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
        plan = _Plan(step, arrays, state, best=best, run_id=self._run_id)
        self._settle()
        self._failure = self._failed = None
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
        """Waits until no save is under way; one that failed is said in a warning."""
        self._settle()

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint known to be sound: one that this object wrote or read."""
        name = max(self._sound & set(self._names()), default=None)
        return None if name is None else self.directory / str(name)

    def newest(self) -> Checkpoint | None:
        """Reads the newest sound checkpoint.

        Those that are newer and damaged are named in warnings, and so is what is left of a save
        that was cut short.

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
        damages: list[str] = []
        passed_over: list[str] = []
        others: list[OtherRunError] = []
        found = None
        for candidate in sorted(names, reverse=True):
            try:
                found = self._read(candidate)
                break
            except _Damaged as damage:
                damages.append(f"{candidate} ({damage})")
                passed_over.append(
                    f"checkpoint {self.directory / str(candidate)} cannot be used: {damage}; "
                    "looking for an older one"
                )
                if isinstance(damage, _OfAnotherRun):
                    others += self._other(candidate, damage)
        if found is None and others and len(others) == len(damages):
            raise others[0]
        for text in passed_over:
            self._warn(text)
        if found is not None:
            return found
        if damages:
            shown = "; ".join(damages[:3]) + ("; ..." if len(damages) > 3 else "")
            raise ModelFileError(
                f"{str(self.directory)!r} holds no checkpoint that can be used: {shown}; put one "
                "back, or start again with another --run_dir"
            )
        return None

    def best(self) -> Checkpoint | None:
        """Reads the newest sound checkpoint that was saved with `best`.

        Those that are newer, and damaged, are named in warnings.

        Returns:
            The checkpoint; None when no sound one was saved with `best`.
        """
        self._settle()
        for name in sorted(self._names(), reverse=True):
            try:
                if not self._manifest(name)[0]["best"]:
                    continue
                return self._read(name)
            except _Damaged as damage:
                self._warn(
                    f"checkpoint {self.directory / str(name)} cannot be used: {damage}; "
                    "looking for an older best one"
                )
        return None

    # The writer thread.

    def _write_quietly(self, plan: _Plan) -> None:
        try:
            self._write(plan)
        except BaseException as error:  # For the caller's thread.
            self._failure = error
            self._failure_said = False
            self._failed = plan

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _settle(self) -> None:
        """Waits for the writer and says what it has to say."""
        self._join()
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

    def _write(self, plan: _Plan) -> Path:
        """Writes a checkpoint and then removes what is no longer needed."""
        _make_directory(self.directory)
        name = self._name_for(plan.step)
        place = self.directory / str(name)
        temporary = self.directory / _temporary_name(name)
        arrays: int | None = None
        try:
            with files.named(temporary):
                os.mkdir(temporary)
            with files.named(temporary / _ARRAYS):
                arrays = _create(temporary / _ARRAYS)
                # Held until the rename: it tells others that the directory is not left over.
                if sys.platform != "win32":
                    _lock(arrays)
                plan.write_arrays(arrays)
                os.fsync(arrays)
            if sys.platform == "win32":  # A directory with open files cannot be renamed there.
                os.close(arrays)
                arrays = None
            with files.named(temporary / _MANIFEST):
                manifest = _create(temporary / _MANIFEST)
                try:
                    _write_all(manifest, plan.manifest(name))
                    os.fsync(manifest)
                finally:
                    os.close(manifest)
            _sync_directory(temporary)
            with files.named(place):
                os.rename(temporary, place)
        except BaseException:
            # By name, so that it does nothing when an interrupt came right after the rename.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            if arrays is not None:
                with files.named(place):
                    _unlock(arrays)
        # Nothing is removed before the new one is sure to be found after a power failure too.
        _sync_directory(self.directory)
        self._sound.add(name)
        try:
            self._remove_unneeded(name)
        except OSError as error:
            self._to_say.append(
                f"the checkpoint {place} is saved, but an old one could not be removed "
                f"({error.strerror}: {error.filename})"
            )
        return place

    def _name_for(self, step: int) -> _Name:
        """A name that is newer than every other."""
        newest = max(self._names(), default=None)
        if newest is None:
            return _Name(0, step)
        generation = newest.generation + (newest.step >= step)
        return _Name(generation, step)

    def _remove_unneeded(self, newest: _Name) -> None:
        """Removes what `newest`, just saved, and the others known to be sound make superfluous."""
        names = sorted(self._names(), reverse=True)
        kept: dict[int, _Name] = {}  # By step: two checkpoints of one step are as good as one.
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
                temporary = self.directory / _temporary_name(name)
                with files.named(self.directory / str(name)):
                    os.rename(self.directory / str(name), temporary)
                _remove(temporary)
        for left in self._left_over():
            _remove(self.directory / left)

    def _other(self, name: _Name, damage: _OfAnotherRun) -> list[OtherRunError]:
        """The error for a checkpoint of another run; [] when it is damaged as well."""
        try:
            self._arrays(name, damage.manifest)
        except _Damaged:
            return []
        return [OtherRunError(self.directory / str(name), damage.manifest["state"])]

    def _is_best(self, name: _Name) -> bool:
        try:
            return self._manifest(name)[0]["best"]
        except _Damaged:
            return False

    # Reading.

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def _names(self) -> list[_Name]:
        return [name for entry in self._entries() if (name := _Name.parse(entry)) is not None]

    def _left_over(self) -> list[str]:
        """Temporary directories whose process is gone."""
        return [
            entry
            for entry in sorted(self._entries())
            if _TEMPORARY.fullmatch(entry) and not _in_use(self.directory / entry / _ARRAYS)
        ]

    def _read(self, name: _Name) -> Checkpoint:
        """Reads and checks everything.

        Raises:
            _Damaged: It is not sound; says why.
        """
        manifest, state = self._manifest(name)
        arrays = self._arrays(name, manifest)
        self._sound.add(name)
        path = self.directory / str(name)
        return Checkpoint(path=path, step=name.step, arrays=arrays, state=state)

    def _arrays(self, name: _Name, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Reads and checks all that is beside the manifest.

        Raises:
            _Damaged: It is not sound; says why.
        """
        path = self.directory / str(name)
        with _damage(path):
            others = sorted(set(os.listdir(path)) - {_ARRAYS, _MANIFEST})
        if others:
            raise _Damaged(f"{others[0]!r} does not belong to it")
        arrays = {}
        with _damage(path / _ARRAYS), open(path / _ARRAYS, "rb", buffering=0) as file:
            size, expected = os.fstat(file.fileno()).st_size, manifest["nbytes"]
            if size != expected:
                raise _Damaged(f"{_ARRAYS} has {size} bytes instead of {expected}")
            for entry in manifest["arrays"]:
                arrays[entry["name"]] = _read_array(file, entry)
        return arrays

    def _manifest(self, name: _Name) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads and checks the manifest; returns it and the state.

        Raises:
            _Damaged: It cannot be used; says why.
        """
        path = self.directory / str(name)
        with _damage(path / _MANIFEST):
            if not path.is_dir():
                raise _Damaged("it is no directory")
            raw = (path / _MANIFEST).read_bytes()
        head = raw[: len(_HEAD) + _DIGEST_LENGTH]
        rest = raw[len(head) :]
        if head != _HEAD + hashlib.sha256(rest).hexdigest().encode():
            raise _Damaged(f"the checksum of {_MANIFEST} is wrong")
        try:
            manifest = json.loads(raw)
        except ValueError as error:
            raise _Damaged(f"{_MANIFEST} is no JSON ({error})") from None
        if manifest.get("format") != FORMAT:
            raise _Damaged(
                f"it is of format {manifest.get('format')!r}, and this version of tfgpu reads "
                f"format {FORMAT}"
            )
        lacking = sorted(_FIELDS - manifest.keys())
        if lacking:
            raise _Damaged(f"its {_MANIFEST} has no {lacking[0]!r}")
        if manifest["run_id"] != self._run_id:
            raise _OfAnotherRun(manifest)
        if manifest["name"] != str(name):
            raise _Damaged(f"its {_MANIFEST} is that of {manifest['name']}")
        return manifest, manifest["state"]


class RunLock:
    """Keeps a second process out of a run directory while this one is in the `with` block.

    The operating system drops the lock when the process ends, however it ends. The file `.lock`
    stays: removing it would let two processes hold locks on two files of that name.

    Attributes:
        path: The run directory.
        supported: Whether the file system has locks, known inside the block. Where it has none
            (some network file systems) nothing is kept out.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.supported = True
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Takes the lock.

        Raises:
            RequestError: Another process has it, or the directory cannot be written.
            OSError: The disk is full.
        """
        file = self.path / ".lock"
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | _FLAG_BINARY, 0o666)
        except OSError as error:
            if error.errno in files.FULL:
                raise
            raise RequestError(
                f"run_dir {str(self.path)!r} cannot be locked ({error.strerror}); name another"
            ) from error
        locked = _lock(descriptor)
        if locked is False:
            try:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
            finally:
                _unlock(descriptor)
            process = f"process {holder}" if holder.isdecimal() else "another process"
            raise RequestError(
                f"run_dir {str(self.path)!r} is in use by {process}; wait for it, stop it, or name "
                "another --run_dir"
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
            _unlock(descriptor)


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


class _OfAnotherRun(_Damaged):
    """It may be sound, but it is not of this run."""

    def __init__(self, manifest: dict[str, Any]):
        super().__init__("it belongs to another run")
        self.manifest = manifest


@dataclasses.dataclass(frozen=True, order=True)
class _Name:
    """A checkpoint's name; a greater one is newer."""

    generation: int
    step: int

    @classmethod
    def parse(cls, text: str) -> _Name | None:
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(int(match["generation"] or 0), int(match["step"]))
        return name if str(name) == text else None

    def __str__(self) -> str:
        return f"step-{self.step:08}" + (f".{self.generation}" if self.generation else "")


class _Plan:
    """What a save writes; made in the caller's thread, where what cannot be saved is an error."""

    def __init__(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
        *,
        best: bool,
        run_id: str,
    ):
        if step < 0:
            raise ValueError(f"step must not be negative, and is {step}")
        self.step = int(step)
        self._arrays = dict(arrays)
        # As text at once: the caller goes on and changes its counters.
        self._state = json.dumps(dict(state))
        self._fields = {"format": FORMAT, "run_id": run_id, "step": self.step, "best": bool(best)}
        self._index: list[dict[str, Any]] = []
        self._nbytes = 0
        for name, array in self._arrays.items():
            if not isinstance(name, str):
                raise TypeError(f"the name of an array must be a text, and is {name!r}")
            if not isinstance(array, np.ndarray | np.generic):
                raise TypeError(f"{name}: {type(array).__name__} is no NumPy array")
            _check_dtype(name, array.dtype)

    def write_arrays(self, descriptor: int) -> None:
        """Writes the arrays and makes their index."""
        self._index, self._nbytes = [], 0
        for name, value in self._arrays.items():
            # Not ascontiguousarray, which gives every array at least one dimension.
            array = np.asarray(value, order="C")
            if array.dtype.byteorder == ">" or (
                array.dtype.byteorder == "=" and sys.byteorder == "big"
            ):
                array = array.astype(array.dtype.newbyteorder("<"))
            data = array.reshape(-1).view(np.uint8)
            crc = 0
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK]
                crc = _extend(crc, chunk)
                _write_all(descriptor, chunk.data)
            self._index.append(
                {
                    "name": name,
                    "dtype": array.dtype.name,
                    "shape": list(array.shape),
                    "offset": self._nbytes,
                    "nbytes": len(data),
                    "crc32c": crc,
                }
            )
            self._nbytes += len(data)

    def manifest(self, name: _Name) -> bytes:
        """The text of the manifest; after `write_arrays`."""
        fields = {**self._fields, "name": str(name), "nbytes": self._nbytes}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
        # An array a line, for the eyes.
        index = ",\n".join(json.dumps(entry) for entry in self._index)
        lines += [f'"state": {self._state}', f'"arrays": [\n{index}\n]']
        rest = ('",\n' + ",\n".join(lines) + "\n}\n").encode()
        return _HEAD + hashlib.sha256(rest).hexdigest().encode() + rest


def _check_dtype(name: str, dtype: np.dtype) -> None:
    """Refuses what could not be read again: objects, texts, records.

    Raises:
        TypeError: Names the array.
    """
    try:
        if _dtype(dtype.name).itemsize == dtype.itemsize:
            return
    except TypeError:
        pass
    raise TypeError(f"{name}: an array of {dtype} cannot be saved")


def _dtype(name: str) -> np.dtype:
    """The dtype of a name in an index.

    Raises:
        TypeError: There is none.
    """
    if name in _NUMPY_DTYPES:
        return np.dtype(name)
    import ml_dtypes  # Only here: few checkpoints hold bfloat16.

    kind = getattr(ml_dtypes, name, None)
    if not isinstance(kind, type):
        raise TypeError(f"{name!r} is no kind of number")
    return np.dtype(kind)


def _read_array(file: Any, entry: Mapping[str, Any]) -> np.ndarray:
    """Reads one array from where the one before it ended.

    Raises:
        _Damaged: Its checksum is wrong, or the file ends too early.
    """
    # The manifest's checksum held: what it says is what was written.
    dtype, shape, nbytes = _dtype(entry["dtype"]), tuple(entry["shape"]), entry["nbytes"]
    array = np.empty(shape, dtype)
    if array.nbytes != nbytes or math.prod(shape) * dtype.itemsize != nbytes:
        raise _Damaged(f"the index of {_ARRAYS} is wrong for {entry['name']}")
    data = array.reshape(-1).view(np.uint8)
    crc, start = 0, 0
    while start < nbytes:
        count = file.readinto(data[start : start + _CHUNK].data)
        if not count:
            raise _Damaged(f"{_ARRAYS} ends within {entry['name']}")
        crc = _extend(crc, data[start : start + count])
        start += count
    if crc != entry["crc32c"]:
        raise _Damaged(f"the checksum of {entry['name']} in {_ARRAYS} is wrong")
    if sys.byteorder == "big" and dtype.itemsize > 1:
        array.byteswap(inplace=True)
    return array


def _extend(crc: int, data: np.ndarray) -> int:
    """The CRC-32C of what `crc` is of, followed by `data`, (n,) uint8 in one piece."""
    # Its C implementation takes arrays as they lie, though no memoryview; the other bytes alone.
    whole = google_crc32c.implementation == "c"
    return google_crc32c.extend(crc, data if whole else data.tobytes())


def _temporary_name(name: _Name) -> str:
    return f".{name}-{secrets.token_hex(8)}.tmp"


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAG_BINARY, 0o666)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]  # A disk that is nearly full takes less.


def _make_directory(path: Path) -> None:
    """Makes a directory and its parents, and puts them on the disk."""
    missing = [place for place in [path, *path.parents] if not place.exists()]
    for place in reversed(missing):
        with files.named(place), contextlib.suppress(FileExistsError):
            os.mkdir(place)
        _sync_directory(place.parent)


def _sync_directory(path: Path) -> None:
    """Puts the names in a directory on the disk, where directories can be flushed.

    Raises:
        OSError: The disk failed.
    """
    if sys.platform == "win32":
        return
    with files.named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems flush files alone.
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a temporary directory, or a link to a checkpoint elsewhere."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _in_use(arrays: Path) -> bool:
    """Whether a process is writing this file of a temporary directory."""
    try:
        descriptor = os.open(arrays, os.O_RDWR | _FLAG_BINARY)
    except FileNotFoundError:
        # Killed before it made the file, or being removed. That it makes it right now is a
        # question of microseconds, and then that save fails and is tried again.
        return False
    except OSError:
        return True  # Not ours to judge.
    if sys.platform == "win32":  # An open file cannot be removed there, which is lock enough.
        os.close(descriptor)
        return False
    locked = _lock(descriptor)
    _unlock(descriptor)
    return locked is not True


# A child made by fork shares its parent's locks: one that outlives a killed parent would keep the
# run directory locked for ever.
_our_descriptors: set[int] = set()


def _forget_descriptors() -> None:
    while _our_descriptors:
        with contextlib.suppress(OSError):
            os.close(_our_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_descriptors)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool | None:
        """Locks a file; False when another has it."""
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

    def _lock(descriptor: int) -> bool | None:
        """Locks a file; False when another has it, None when the file system has no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in _NO_LOCKS else False
        _our_descriptors.add(descriptor)
        return True


def _unlock(descriptor: int) -> None:
    """Gives up the lock of a file and closes it."""
    _our_descriptors.discard(descriptor)
    if sys.platform != "win32":
        # Closing is not enough while a child that another thread starts has a copy of it.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what the operating system says of a file into a damage."""
    try:
        yield
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read ({error.strerror})") from None
