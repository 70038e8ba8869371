"""Random access to the records of TFRecord files.

The format has none of its own: a file is a row of records, each a little-endian uint64 length, the
masked CRC-32C of those 8 bytes, the data, and the masked CRC-32C of the data
(tensorflow/core/lib/io/record_writer.h). Walking the lengths alone gives every record's place in a
fraction of a second, and then each is one read away.
"""

import collections
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence

import google_crc32c
import numpy as np

from tfgpu.errors import DataError

_HEADER = struct.Struct("<QI")  # length of the data, masked CRC of those 8 bytes
_FOOTER = struct.Struct("<I")  # masked CRC of the data
_REMEDY = "delete its folder and prepare the data set again"

# ImageNet has 1,024 files a split, as many as a process may usually hold open.
_MAX_OPEN_FILES = 128


def index_records(path: str) -> np.ndarray:
    """Finds the records of one TFRecord file by walking its framing.

    Args:
        path: The file.

    Returns:
        int64 [n, 2]: offset and length in bytes of the data of each record.

    Raises:
        DataError: The file is missing, unreadable, truncated or not a TFRecord file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return np.zeros((0, 2), np.int64)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                if hasattr(view, "madvise"):
                    # Only headers are touched: reading ahead would read everything.
                    view.madvise(mmap.MADV_RANDOM)
                return np.asarray(_walk(view, size, path), np.int64).reshape(-1, 2)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _walk(view: mmap.mmap, size: int, path: str) -> list[tuple[int, int]]:
    places = []
    offset = 0
    while offset < size:
        if offset + _HEADER.size > size:
            raise _truncated(path, offset, size)
        length, length_crc = _HEADER.unpack_from(view, offset)
        if _masked_crc(view[offset : offset + 8]) != length_crc:
            raise DataError(
                f"{path} is damaged: the record at byte {offset} has a wrong length checksum; "
                f"{_REMEDY}"
            )
        start = offset + _HEADER.size
        offset = start + length + _FOOTER.size
        if offset > size:
            raise _truncated(path, start - _HEADER.size, size)
        places.append((start, length))
    return places


class TFRecordFiles:
    """The records of several TFRecord files as one sequence, read in any order.

    Safe to call from several threads.
    """

    def __init__(self, paths: Sequence[str], *, shard_lengths: Sequence[int] | None = None):
        """Indexes the files.

        Args:
            paths: The files, in order.
            shard_lengths: How many records each must hold, when known.

        Raises:
            DataError: A file is missing, unreadable, truncated, damaged, or holds another number
                of records.
        """
        self._paths = list(paths)
        indices = [index_records(path) for path in self._paths]
        if shard_lengths is not None:
            for path, index, expected in zip(self._paths, indices, shard_lengths, strict=True):
                if len(index) != expected:
                    raise DataError(
                        f"{path} is truncated or damaged: it holds {len(index)} records instead "
                        f"of {expected}; {_REMEDY}"
                    )
        self._places = np.concatenate([np.zeros((0, 2), np.int64), *indices])
        self._ends = np.cumsum([len(index) for index in indices], dtype=np.int64)
        self._open: collections.OrderedDict[int, _OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many records all files hold."""
        return len(self._places)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Reads records and checks them against their checksums.

        Args:
            positions: int64 [n].

        Returns:
            Array of `bytes` objects, [n].

        Raises:
            DataError: A record does not match its checksum, or cannot be read.
        """
        records = np.empty(len(positions), object)
        shards = np.searchsorted(self._ends, positions, side="right")
        places = self._places[positions].tolist()
        for i, (shard, (offset, length)) in enumerate(zip(shards.tolist(), places, strict=True)):
            try:
                framed = self._file(shard).read(offset, length + _FOOTER.size)
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{self._paths[shard]} cannot be read: {reason}") from None
            if len(framed) != length + _FOOTER.size:
                raise DataError(f"{self._paths[shard]} was cut short while it was in use")
            data = framed[:length]
            if _masked_crc(data) != _FOOTER.unpack_from(framed, length)[0]:
                first = int(self._ends[shard - 1]) if shard else 0
                raise DataError(
                    f"{self._paths[shard]} is damaged: record {int(positions[i]) - first} does "
                    f"not match its checksum; {_REMEDY}"
                )
            records[i] = data
        return records

    def _file(self, shard: int) -> "_OpenFile":
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = _OpenFile(self._paths[shard])
                if len(self._open) > _MAX_OPEN_FILES:
                    # A thread that still reads from it holds a reference, and so keeps it open.
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return file


class _OpenFile:
    """A descriptor that closes with its last reference."""

    _descriptor = -1

    def __init__(self, path: str):
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, offset)
        with self._lock:  # Windows has no pread.
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, length)

    # A default, since the module's `os` may be gone when the process ends.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._descriptor >= 0:
            close(self._descriptor)


def _masked_crc(data: bytes) -> int:
    # The rotation and the constant are those of tensorflow/core/lib/hash/crc32c.h.
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _truncated(path: str, offset: int, size: int) -> DataError:
    return DataError(
        f"{path} is truncated: its record at byte {offset} runs past the end at {size}; {_REMEDY}"
    )
