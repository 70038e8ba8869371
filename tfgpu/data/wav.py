"""WAV files: what they say of themselves, and their samples as 16-bit numbers of one channel.

PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 are read, by the header of the file: IBM and
Microsoft, "Multimedia Programming Interface and Data Specifications 1.0", 1991, and the format tags
of RFC 2361. The header is read here since Python's `wave` knows no floats, and SciPy's reader has
no way to read the header alone.
"""

from __future__ import annotations

import math
import os
import re
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

from tfgpu.data.file_tree import Remarks
from tfgpu.errors import DataError, shown

EXTENSIONS: tuple[str, ...] = (".wav", ".wave")

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_OTHERS = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0050: "MPEG",
    0x0055: "MP3",
}
_UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # What a program writes that did not know how long it would be.
_CHUNK_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9 _]{3}")
_MOST_RATE = 1_000_000  # Hz; recorders of ultrasound have half of it.
_FULL_SCALE = 2**15
_LOUD = "louder than full scale, divided by its peak"
_MOST_STRETCHED = 1000  # Samples that one becomes.


class Header(NamedTuple):
    """What a WAV file says before it is decoded."""

    rate: int  # Hz
    channels: int
    samples: int  # Of each channel.
    floats: bool
    bits: int  # Of a sample in the file.
    offset: int  # Where the samples begin.


def read_header(path: str) -> Header:
    """Reads the header of a WAV file.

    Returns:
        The header, which may say that there is no sample.

    Raises:
        DataError: It cannot be read, is no WAV file or cut off, or has an encoding that is not read
            here.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(12)
            if len(start) < 12 or start[8:] != b"WAVE" or start[:4] != b"RIFF":
                raise DataError(f"{shown(path)} is no WAV file: it does not begin as one")
            fields: tuple[int, ...] | None = None
            while len(head := file.read(8)) == 8:
                name, count = struct.unpack("<4sI", head)
                if name == b"fmt ":
                    fields = _format(path, file.read(count))
                elif name == b"data":
                    if fields is None:
                        break
                    offset = file.tell()
                    if not count and _is_empty(file, start, size):
                        size = offset
                    return _header(path, fields, count, offset, size)
                else:
                    file.seek(count, os.SEEK_CUR)
                file.seek(count % 2, os.SEEK_CUR)  # Chunks begin at even places.
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}") from None
    raise DataError(f"{shown(path)} is a WAV file with a damaged header: it has no part of samples")


def _is_empty(file: BinaryIO, start: bytes, size: int) -> bool:
    """Whether a part of samples of size 0, up to which a file is read, really has none.

    Without a size for the whole file either, its program did not know them. Otherwise other parts
    may stand behind, such as the title.
    """
    (said,) = struct.unpack("<I", start[4:8])
    if abs(said + 8 - size) <= 1:
        return True
    while len(head := file.read(8)) == 8 and _CHUNK_NAME.fullmatch(head[:4]):
        (count,) = struct.unpack("<I", head[4:])
        file.seek(count + count % 2, os.SEEK_CUR)
        if size <= file.tell() <= size + 1:
            return True
    return False


def _format(path: str, chunk: bytes) -> tuple[int, ...]:
    """Tag, channels, rate, bytes of a frame, bits of a sample."""
    if len(chunk) < 16:
        raise DataError(f"{shown(path)} is a WAV file with a damaged header")
    tag, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack("<H", chunk[24:26])
    readable = (tag == _PCM and bits in (8, 16, 24, 32)) or (tag == _FLOAT and bits in (32, 64))
    if not readable:
        name = {_PCM: f"PCM of {bits} bits", _FLOAT: f"floats of {bits} bits"}.get(tag)
        name = name or _OTHERS.get(tag, f"format 0x{tag:04x}")
        raise DataError(
            f"{shown(path)} is encoded as {name}, which is not read here: convert it to PCM, "
            "such as with `ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav`"
        )
    if not channels or not rate or frame != channels * bits // 8:
        raise DataError(f"{shown(path)} is a WAV file with a damaged header")
    if rate > _MOST_RATE:
        raise DataError(
            f"{shown(path)} says that it has {rate:,} samples a second, and is damaged, or no sound"
        )
    return tag, channels, rate, frame, bits


def _header(path: str, fields: tuple[int, ...], count: int, offset: int, size: int) -> Header:
    tag, channels, rate, frame, bits = fields
    there = size - offset
    if count in _UNKNOWN_SIZE:
        count = there
    if count > there:
        raise DataError(
            f"{shown(path)} is cut off: {there:,} of {count:,} bytes of samples are there"
        )
    return Header(rate, channels, count // frame, tag == _FLOAT, bits, offset)


def read_wav(path: str, rate: int, *, remarks: Remarks | None = None) -> np.ndarray:
    """Decodes a WAV file: its channels mixed down to their mean, at a rate.

    Args:
        path: The file.
        rate: In Hz; samples at another are brought to it by `resample`.
        remarks: Gets what the samples are not as they are in the file for.

    Returns:
        int16 (samples,), at least one: floats in [-1, 1] and integers of other sizes brought to the
        range of 16 bits. Floats beyond are divided by the greatest: cut off, they would be noise.

    Raises:
        DataError: See `read_header`; or there is no sample, or one is not finite.
    """
    header = read_header(path)
    if not header.samples:
        raise DataError(f"{shown(path)} has a length of zero: it holds no sample")
    if rate > _MOST_STRETCHED * header.rate:
        raise DataError(
            f"{shown(path)} says that it has {header.rate:,} samples a second, and cannot be "
            f"brought to {rate:,}: it is damaged, or no sound"
        )
    if remarks is not None:
        name = shown(os.path.basename(path))
        if header.rate != rate:
            remarks.add(f"of {header.rate} Hz, resampled to the {rate} Hz of training", name)
        if header.channels > 1:
            remarks.add("of several channels, mixed down to one", name)
    content = _content(path, header)
    if header.bits == 16 and header.channels == 1 and header.rate == rate:
        return np.frombuffer(content, "<i2").astype(np.int16)
    mixed, peak = _mixed(path, header, content)
    if peak > _FULL_SCALE:
        mixed *= _FULL_SCALE / peak
        if remarks is not None:
            remarks.add(_LOUD, shown(os.path.basename(path)))
    return resample(mixed, header.rate, rate)


def is_loud(path: str, header: Header) -> bool:
    """Whether the samples of a file go beyond full scale, as floats may.

    Args:
        path: The file.
        header: What `read_header` said of it.

    Raises:
        DataError: See `read_wav`.
    """
    if not header.floats or not header.samples:
        return False
    return _mixed(path, header, _content(path, header))[1] > _FULL_SCALE


def _content(path: str, header: Header) -> bytes:
    """The bytes of the samples."""
    try:
        with open(path, "rb") as file:
            file.seek(header.offset)
            return file.read(header.samples * header.channels * header.bits // 8)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}") from None


def _mixed(path: str, header: Header, content: bytes) -> tuple[np.ndarray, float]:
    """The mean of the channels in the range of 16 bits, float64, and its greatest size."""
    values = _values(content, header)
    if not np.isfinite(values).all():
        raise DataError(f"{shown(path)} has samples that are not finite: mend it, or take it away")
    mixed: np.ndarray = values.reshape(-1, header.channels).mean(axis=1)
    return mixed, float(np.abs(mixed).max())


def _values(content: bytes, header: Header) -> np.ndarray:
    """All samples in the range of 16 bits, float64."""
    if header.floats:
        return np.frombuffer(content, f"<f{header.bits // 8}").astype(np.float64) * _FULL_SCALE
    if header.bits == 8:  # Without a sign.
        return (np.frombuffer(content, np.uint8).astype(np.float64) - 128) * 2**8
    if header.bits == 24:
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float64) / 2**16
    wider = np.frombuffer(content, f"<i{header.bits // 8}").astype(np.float64)
    return wider / 2 ** (header.bits - 16)


def resample(samples: np.ndarray, given: int, wanted: int) -> np.ndarray:
    """Brings samples to another rate: a polyphase filter with a Kaiser window (SciPy's).

    Args:
        samples: (n,), in the range of 16 bits.
        given: Their rate, in Hz.
        wanted: The rate wanted.

    Returns:
        int16 (ceil(n * wanted / given),), rounded and cut to the range.
    """
    values = np.asarray(samples, np.float64)
    if given != wanted:
        # Here, since it takes a moment to import, and most files have the rate already.
        from scipy.signal import resample_poly

        common = math.gcd(given, wanted)
        values = resample_poly(values, wanted // common, given // common)
    return np.clip(np.round(values), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
