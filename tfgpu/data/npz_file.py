"""The file that `numpy.savez` writes: headers of its arrays, and their values when they are used.

No array is unpickled. An array is read into memory; one above `MAPPED` bytes that is not compressed
is mapped, and read as its rows are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import zipfile
from typing import IO, Any

import numpy as np

from tfgpu.errors import DataError

MAPPED = 256 << 20
"""Bytes above which an array is mapped, where it is not compressed."""

_CHECKED = 1 << 22  # Values that are looked at at once for NaN.


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the file, of which the header has been read.

    Attributes:
        path: Of the file.
        name: In the file, without ".npy".
        shape: Of all of it.
        dtype: Of its values.
        fortran: Whether its first axis is that which varies fastest.
        offset: Where its values begin in the file; None where they are compressed.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int | None

    @functools.cached_property
    def values(self) -> np.ndarray:
        """All of it: in memory, or mapped.

        Raises:
            DataError: It cannot be read, or has a value that is not finite.
        """
        order: Any = "F" if self.fortran else "C"
        try:
            if self.mapped:
                assert self.offset is not None
                found: np.ndarray = np.memmap(
                    self.path, self.dtype, "r", self.offset, self.shape, order
                )
            else:
                with np.load(self.path, allow_pickle=False) as file:
                    found = file[self.name]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path}: the array {self.name!r} cannot be read: {_first_line(error)}"
            ) from None
        if self.dtype.kind == "f":
            self._refuse_not_finite(found)
        return found

    @property
    def mapped(self) -> bool:
        """Whether the values stay in the file."""
        return self.offset is not None and math.prod(self.shape) * self.dtype.itemsize > MAPPED

    def _refuse_not_finite(self, found: np.ndarray) -> None:
        rows = max(1, _CHECKED // max(1, math.prod(self.shape[1:])))
        for start in range(0, len(found), rows):
            fine = np.isfinite(found[start : start + rows])
            if not fine.all():
                place = tuple(int(i) for i in np.argwhere(~fine)[0])
                value = found[start : start + rows][place]
                shown = ", ".join(map(str, (start + place[0], *place[1:])))
                raise DataError(
                    f"{self.path}: {self.name}[{shown}] is {value}: mend it, or take the example "
                    "away"
                )


def read_headers(path: str) -> tuple[dict[str, Array], str]:
    """Reads the headers of a file.

    Args:
        path: Of the file.

    Returns:
        The arrays by name, and a SHA-256 over the names, sizes and checksums of all.

    Raises:
        DataError: It is no such file, or an array holds Python objects.
    """
    arrays: dict[str, Array] = {}
    content = []
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                content.append([member.filename, member.file_size, member.CRC])
                name = member.filename.removesuffix(".npy")
                if name != member.filename:
                    with archive.open(member) as opened:
                        arrays[name] = _header(path, name, member, opened, file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no file of NumPy arrays ({_first_line(error)}): write it with numpy.savez"
        ) from None
    if not arrays:
        raise DataError(f"{path} holds no array: write it with numpy.savez(FILE, x=..., y=...)")
    return arrays, hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _header(
    path: str, name: str, member: zipfile.ZipInfo, opened: IO[bytes], file: IO[bytes]
) -> Array:
    version = np.lib.format.read_magic(opened)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(opened)
    else:
        raise ValueError(f"the array {name!r} is of the unknown version {version}")
    if dtype.hasobject:
        raise DataError(
            f"{path}: the array {name!r} holds Python objects, and to read them would run what the "
            "file says: write numbers or strings; rows of different length one after another, "
            "with an array 'lengths' beside"
        )
    offset = None
    if member.compress_type == zipfile.ZIP_STORED:
        file.seek(member.header_offset + 26)  # The lengths of the name and of what follows it.
        sizes = np.frombuffer(file.read(4), "<u2")
        offset = member.header_offset + 30 + int(sizes.sum()) + opened.tell()
    return Array(path, name, shape, dtype, fortran, offset)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
