"""The files of one checkpoint: written in one piece, read with every byte checked.

    step-00001230/arrays.bin     the arrays, little-endian, one after another
    step-00001230/manifest.json  the state, the index of arrays.bin, the checksums

Arrays carry a CRC-32C each, which finds every change of up to 32 bits in a row with certainty and
any other but for one in 2**32; it takes 0.1 s of processor time a GB where SHA-256 takes 0.56 s
with the processor's own instructions for it, and the writer shares the processor with training.
The manifest carries the SHA-256 of its own text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tfgpu.artifacts.lock import FLAG_BINARY

FORMAT = 1

ARRAYS = "arrays.bin"
MANIFEST = "manifest.json"
TEMPORARY = re.compile(r"\.step-[\d.]+-[0-9a-f]{16}\.tmp")
_NAME = re.compile(r"step-(?P<step>\d{8,})(?:\.(?P<generation>[1-9]\d*))?")

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
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a sound checkpoint holds.

    Attributes:
        path: Its directory.
        step: The training steps done when it was saved.
        arrays: The arrays by name, in the order in which they were saved; writable.
        state: Counters, positions, settings, as JSON holds them (a tuple has become a list).
        sha256: Of its manifest, which has the checksum of each array.
    """

    path: Path
    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    sha256: str = ""


class Damaged(Exception):
    """Why a checkpoint cannot be used."""


class OfAnotherRun(Damaged):
    """It may be sound, but it is not of this run."""

    def __init__(self, manifest: dict[str, Any]):
        super().__init__("it belongs to another run")
        self.manifest = manifest


@dataclasses.dataclass(frozen=True, order=True)
class Name:
    """A checkpoint's name; a greater one is newer."""

    generation: int
    step: int

    @classmethod
    def parse(cls, text: str) -> Name | None:
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(int(match["generation"] or 0), int(match["step"]))
        return name if str(name) == text else None

    def __str__(self) -> str:
        return f"step-{self.step:08}" + (f".{self.generation}" if self.generation else "")


class Plan:
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
            for start in range(0, len(data), CHUNK):
                chunk = data[start : start + CHUNK]
                crc = _extend(crc, chunk)
                write_all(descriptor, chunk.data)
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

    def manifest(self, name: Name) -> bytes:
        """The text of the manifest; after `write_arrays`."""
        fields = {**self._fields, "name": str(name), "nbytes": self._nbytes}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
        # An array a line, for the eyes.
        index = ",\n".join(json.dumps(entry) for entry in self._index)
        lines += [f'"state": {self._state}', f'"arrays": [\n{index}\n]']
        rest = ('",\n' + ",\n".join(lines) + "\n}\n").encode()
        return _HEAD + hashlib.sha256(rest).hexdigest().encode() + rest


def read_arrays(path: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads and checks all that is beside the manifest of a checkpoint.

    Args:
        path: The checkpoint's directory.
        manifest: What `read_manifest` returned.

    Raises:
        Damaged: It is not sound; says why.
    """
    with _damage(path):
        others = sorted(set(os.listdir(path)) - {ARRAYS, MANIFEST})
    if others:
        raise Damaged(f"{others[0]!r} does not belong to it")
    arrays = {}
    with _damage(path / ARRAYS), open(path / ARRAYS, "rb", buffering=0) as file:
        size, expected = os.fstat(file.fileno()).st_size, manifest["nbytes"]
        if size != expected:
            raise Damaged(f"{ARRAYS} has {size} bytes instead of {expected}")
        for entry in manifest["arrays"]:
            arrays[entry["name"]] = _read_array(file, entry)
    return arrays


def read_manifest(path: Path, *, run_id: str) -> dict[str, Any]:
    """Reads and checks the manifest of a checkpoint.

    Args:
        path: The checkpoint's directory.
        run_id: Of the run that it is to be of.

    Raises:
        Damaged: It cannot be used; says why.
    """
    with _damage(path / MANIFEST):
        if not path.is_dir():
            raise Damaged("it is no directory")
        raw = (path / MANIFEST).read_bytes()
    head = raw[: len(_HEAD) + _DIGEST_LENGTH]
    rest = raw[len(head) :]
    if head != _HEAD + hashlib.sha256(rest).hexdigest().encode():
        raise Damaged(f"the checksum of {MANIFEST} is wrong")
    try:
        manifest: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is no JSON ({error})") from None
    if manifest.get("format") != FORMAT:
        raise Damaged(
            f"it is of format {manifest.get('format')!r}, and this version of tfgpu reads "
            f"format {FORMAT}"
        )
    lacking = sorted(_FIELDS - manifest.keys())
    if lacking:
        raise Damaged(f"its {MANIFEST} has no {lacking[0]!r}")
    if manifest["run_id"] != run_id:
        raise OfAnotherRun(manifest)
    if manifest["name"] != path.name:
        raise Damaged(f"its {MANIFEST} is that of {manifest['name']}")
    return manifest


def _check_dtype(name: str, dtype: np.dtype) -> None:
    """Refuses what could not be read again: objects, texts, records.

    Raises:
        TypeError: Names the array.
    """
    try:
        if dtype_of(dtype.name).itemsize == dtype.itemsize:
            return
    except TypeError:
        pass
    raise TypeError(f"{name}: an array of {dtype} cannot be saved")


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name in an index, of NumPy's or of ml_dtypes.

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
        Damaged: Its checksum is wrong, or the file ends too early.
    """
    # The manifest's checksum held: what it says is what was written.
    dtype, shape, nbytes = dtype_of(entry["dtype"]), tuple(entry["shape"]), entry["nbytes"]
    array = np.empty(shape, dtype)
    if array.nbytes != nbytes or math.prod(shape) * dtype.itemsize != nbytes:
        raise Damaged(f"the index of {ARRAYS} is wrong for {entry['name']}")
    data = array.reshape(-1).view(np.uint8)
    crc, start = 0, 0
    while start < nbytes:
        count = file.readinto(data[start : start + CHUNK].data)
        if not count:
            raise Damaged(f"{ARRAYS} ends within {entry['name']}")
        crc = _extend(crc, data[start : start + count])
        start += count
    if crc != entry["crc32c"]:
        raise Damaged(f"the checksum of {entry['name']} in {ARRAYS} is wrong")
    if sys.byteorder == "big" and dtype.itemsize > 1:
        array.byteswap(inplace=True)
    return array


def _extend(crc: int, data: np.ndarray) -> int:
    """The CRC-32C of what `crc` is of, followed by `data`, (n,) uint8 in one piece."""
    # Its C implementation takes arrays as they lie, though no memoryview; the other bytes alone.
    whole = google_crc32c.implementation == "c"
    return google_crc32c.extend(crc, data if whole else data.tobytes())


def temporary_name(name: Name) -> str:
    return f".{name}-{secrets.token_hex(8)}.tmp"


def create_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAG_BINARY, 0o666)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]  # A disk that is nearly full takes less.


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what the operating system says of a file into a damage."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
