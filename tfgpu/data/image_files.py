"""Image files as people have them, decoded in one way by training, evaluation and prediction.

What a file is, its first bytes say, not its extension. docs/data.md has a table of the kinds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.util
import os
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from tfgpu.data.file_tree import Remarks
from tfgpu.errors import DataError, shown

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)

FRAMES = "of several frames, of which the first is taken"
ALPHA = "with transparency, which is dropped"
TURNED = "turned upright by their EXIF tag"

# Pillow's names. Others are not tried, whatever is installed: to read EPS it starts Ghostscript.
_FORMATS = (*("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),)
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 are quarter turns.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1"})
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325  # Tags of TIFF.
_SHOWN = 3  # Files in a message about many.


class Header(NamedTuple):
    """What an image file says before it is decoded."""

    size: tuple[int, int]  # height, width, upright
    grey: bool
    frames: bool = False  # Whether there are several.
    alpha: bool = False
    turned: bool = False


def read_headers(paths: list[str]) -> list[Header]:
    """Reads size and kind of images, without decoding them.

    Raises:
        DataError: Some cannot be read as images, or end too early: how many, and the first ones.
    """

    def read(path: str) -> Header | DataError:
        try:
            return _read_header(path)
        except DataError as error:
            return error

    # Threads because opening waits for the disk.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, paths, chunksize=64))
    problems = [str(each) for each in found if isinstance(each, DataError)]
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{len(problems):,} of {len(paths):,} images cannot be used, mend them or take them "
            f"away: {'; '.join(problems[:_SHOWN])}{more}"
        )
    return [each for each in found if isinstance(each, Header)]


def remark(header: Header, path: str, remarks: Remarks) -> None:
    """Counts what is to be said of an image."""
    name = shown(os.path.basename(path))
    if header.frames:
        remarks.add(FRAMES, name)
    if header.alpha:
        remarks.add(ALPHA, name)


def read_image(path: str, *, channels: int, remarks: Remarks | None = None) -> np.ndarray:
    """Decodes one image file as every image of a folder is decoded.

    Of several frames the first; upright by its EXIF tag; transparency is dropped; 16 bits a value
    become 8 by dropping the lower ones; CMYK by the plain formula; colour profiles are left.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).
        remarks: Gets what there is to say of it.

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: It cannot be read as an image.
    """
    with opened(path) as file:
        if remarks is not None:
            remark(_header(file), path, remarks)
        image = upright(file)
        if image.mode.startswith("I"):
            if file.format == "TIFF" and image.mode == "I":
                raise DataError(
                    f"{shown(path)} has 32 bits a value, which may mean anything: save it with 8 "
                    "or 16"
                )
            grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], channels, axis=-1)
        if image.mode == "F":
            raise DataError(
                f"{shown(path)} has floats for values, which may mean anything: save it with 8 or "
                "16 bits a value"
            )
        if image.mode == "La":
            image = image.convert("LA")
        if image.mode == "RGBa" or (image.mode == "P" and "transparency" in image.info):
            # Pillow warns about the direct way from a palette.
            image = image.convert("RGBA")
        values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return values.reshape(*values.shape[:2], channels)


def upright(image: Image.Image) -> Image.Image:
    """Decodes an opened image and turns it as its EXIF tag says."""
    turn = _UPRIGHT.get(_orientation(image))
    image.load()
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Opens an image; what is found to be wrong with it is a DataError."""
    try:
        with Image.open(path, formats=_formats()) as file:
            yield file
    except UnidentifiedImageError:
        raise DataError(f"{shown(path)} {_what_else(path)}") from None
    # Pillow raises SyntaxError for broken PNG chunks, struct.error for tags that end too early.
    except (
        *(OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError),
        Image.DecompressionBombError,
    ) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{shown(path)} cannot be read: {said}") from None


@functools.cache
def _formats() -> list[str]:
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    # They name no file, and nothing follows from them: a photograph of 108 megapixels is read.
    warnings.filterwarnings("ignore", "(Possibly c|C)orrupt EXIF data", UserWarning)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _read_header(path: str) -> Header:
    with opened(path) as image:
        header = _header(image)
        with open(path, "rb") as file:
            if not _ends_where_it_should(image, file, os.path.getsize(path)):
                image.load()  # It may be whole all the same, and raises where it is not.
    return header


def _header(image: Image.Image) -> Header:
    """Of an image that has just been opened."""
    width, height = image.size
    turn = _orientation(image)
    if turn >= 5:
        width, height = height, width
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    # What else an MPO holds are previews and depth maps of the same picture.
    frames = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return Header((height, width), grey, frames, alpha, turn in _UPRIGHT)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag of an image that is not loaded yet; 1 where there is none that can be read."""
    # Pillow turns a TIFF by itself. Of a PNG it would read all to find EXIF behind the pixels,
    # where hardly any program writes it.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        found = Image.Exif()
        if image.format == "PNG":
            found.load(image.info["exif"])
        else:
            found = image.getexif()
        turn = found.get(_ORIENTATION, 1)
    # What cameras and editors write into it is no reason to refuse the picture.
    except Exception:
        return 1
    return turn if isinstance(turn, int) else 1


def _ends_where_it_should(image: Image.Image, file: BinaryIO, size: int) -> bool:
    """Whether the end of a file is there, as far as that can be told without decoding it."""
    kind = image.format

    def last(count: int) -> bytes:
        file.seek(max(0, size - count))
        return file.read()

    if kind in ("JPEG", "MPO", "JPEG2000"):
        return last(2) == b"\xff\xd9"
    if kind == "PNG":
        return last(8)[:4] == b"IEND"
    if kind == "GIF":
        return last(1) == b";"
    if kind in ("WEBP", "BMP"):
        file.seek(0)
        start = file.read(8)
        at, more = (4, 8) if kind == "WEBP" else (2, 0)
        return size >= struct.unpack_from("<I", start, at)[0] + more
    if kind == "TIFF":
        tags = getattr(image, "tag_v2", {})
        places = [*tags.get(_STRIPS, ()), *tags.get(_TILES, ())]
        counts = [*tags.get(_STRIP_BYTES, ()), *tags.get(_TILE_BYTES, ())]
        pairs = zip(places, counts, strict=False)
        return bool(places) and all(place + count <= size for place, count in pairs)
    if kind in ("AVIF", "HEIF"):
        return _boxes_end(file, size)
    return False


def _boxes_end(file: BinaryIO, size: int) -> bool:
    """Whether the boxes of an ISO base media file (ISO/IEC 14496-12, 4.2) end where it does."""
    at = 0
    while at < size:
        file.seek(at)
        start = file.read(16)
        if len(start) < 8:
            return False
        length = int.from_bytes(start[:4], "big")
        if length == 1:
            length = int.from_bytes(start[8:16], "big")
        elif length == 0:  # To the end, wherever that is.
            return False
        if length < 8:
            return False
        at += length
    return at == size


def _what_else(path: str) -> str:
    """What a file is that is no image which can be read here."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        if "AVIF" in Image.OPEN:
            return "is not an AVIF image that can be read"
        return "is an AVIF image, which Pillow 11.3 or newer reads: pip install -U pillow"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        if importlib.util.find_spec("pillow_heif") is None:
            return "is a HEIC image: pip install 'tfgpu[heic]' reads it, or save it as a JPEG"
        return "is not a HEIC image that can be read"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "is a JPEG XL image, which is not read: save it as a PNG or a JPEG"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image: git lfs pull brings that"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image"
    if not start.strip(b"\0"):
        return "holds zeros alone, as a download that was broken off does"
    return "is not an image that can be read"
