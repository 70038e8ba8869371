"""`folder:PATH`: the user's own images, one directory a class.

    PATH/{train,test}/CLASS/*.png      or      PATH/CLASS/*.png

Which of `train`, `test`, `validation` (or `val`) is the test split, `tfgpu.data.sources` decides.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfgpu.data.examples import Examples, Source, python_op, resize
from tfgpu.errors import DataError, RequestError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_SPLIT_DIRS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val")}
_ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 are quarter turns.


class _Header(NamedTuple):
    size: tuple[int, int]  # height, width
    grey: bool


def open_folder(path: str, *, image_size: tuple[int, int] | None) -> Source:
    """Opens a directory of images.

    The number of channels comes from the data: 1 when every image is grey, else 3.

    Args:
        path: Holds `train` (and `test`, `validation` or `val`) with one directory a class each, or
            the directories of the classes themselves. Images lie in them at any depth; files that
            are not images by their extension are left.
        image_size: (height, width) to bring every image to, or None.

    Raises:
        RequestError: The images differ in size and `image_size` is None.
        DataError: The directory or an image cannot be read, or there are fewer than two classes,
            or a class has no images or is unknown to the training split.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(root):
        raise DataError(f"the folder {path!r} does not exist")
    if not os.path.isdir(root):
        raise DataError(f"{path!r} is not a folder")
    split_dirs = {"train": root}
    if "train" in _subdirectories(root):
        split_dirs = {
            split: os.path.join(root, name)
            for split, names in _SPLIT_DIRS.items()
            for name in names
            if name in _subdirectories(root)
        }
    found = {split: _find_images(directory) for split, directory in split_dirs.items()}
    class_names = tuple(found["train"])
    _check_classes(found, split_dirs, class_names)

    files: dict[str, tuple[list[str], list[int]]] = {
        split: (
            [image for name in class_names for image in classes.get(name, [])],
            [i for i, name in enumerate(class_names) for _ in classes.get(name, [])],
        )
        for split, classes in found.items()
    }
    every_path = [image for paths, _ in files.values() for image in paths]
    # Opening reads the header only; threads because it waits for the disk.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(_read_header, every_path, chunksize=64))
    channels = 1 if all(header.grey for header in headers) else 3
    size = image_size or _common_size(every_path, headers)

    def split(split_name: str) -> Examples | None:
        if split_name not in files:
            return None
        return _examples(*files[split_name], shape=(*size, channels))

    relative = sorted((os.path.relpath(p, root), os.path.getsize(p)) for p in every_path)
    return Source(
        name=f"folder:{path}",
        fingerprint=hashlib.sha256(json.dumps(relative).encode()).hexdigest(),
        image_shape=(*size, channels),
        class_names=class_names,
        split=split,
    )


def read_image(path: str, *, channels: int) -> np.ndarray:
    """Decodes one image file as every image of a folder is decoded.

    Of an animation the first frame; a JPEG is turned upright by its EXIF tag; transparency is
    dropped; 16 bits a value become 8 by dropping the lower ones.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: It cannot be read as an image.
    """
    with _opened(path) as file:
        file.load()
        image = ImageOps.exif_transpose(file) if file.format in ("JPEG", "MPO") else file
        if image.mode.startswith("I"):
            grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], channels, axis=-1)
        if image.mode == "P" and "transparency" in image.info:
            # Pillow warns about the direct way.
            image = image.convert("RGBA")
        values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return values.reshape(*values.shape[:2], channels)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Opens an image; what is found to be wrong with it is a DataError."""
    try:
        with Image.open(path) as file:
            yield file
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks.
        raise DataError(f"{path} cannot be read: {error}") from None


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {directory} cannot be read: {error.strerror}") from None


def _find_images(directory: str) -> dict[str, list[str]]:
    """Returns the sorted images of each class."""

    def fail(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}")

    classes = {}
    for name in _subdirectories(directory):
        images = [
            os.path.join(parent, file)
            for parent, _, names in os.walk(os.path.join(directory, name), onerror=fail)
            for file in names
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
        # By parts, so that the order does not depend on the separator of the system.
        classes[name] = sorted(images, key=lambda image: pathlib.PurePath(image).parts)
    return classes


def _check_classes(
    found: dict[str, dict[str, list[str]]],
    directories: dict[str, str],
    class_names: tuple[str, ...],
) -> None:
    where = directories["train"]
    if not class_names:
        raise DataError(
            f"the folder {where} holds no folder of a class: images belong in "
            f"{os.path.join(where, 'CLASS')}"
        )
    if len(class_names) == 1:
        raise DataError(
            f"the folder {where} holds one class only, {class_names[0]!r}: there must be at least "
            "two to tell apart"
        )
    for split, classes in found.items():
        for name, images in classes.items():
            directory = os.path.join(directories[split], name)
            if name not in class_names:
                raise DataError(
                    f"the class {name!r} of {directory} is unknown to {where}, which has "
                    f"{', '.join(class_names)}"
                )
            if not images:
                raise DataError(f"the folder {directory} holds no images ({', '.join(EXTENSIONS)})")
        if not classes:
            raise DataError(f"the folder {directories[split]} holds no folder of a class")


def _read_header(path: str) -> _Header:
    with _opened(path) as image:
        width, height = image.size
        # Of a PNG, Pillow would read all to find EXIF, so only a JPEG is ever turned.
        if image.format in ("JPEG", "MPO") and image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
        return _Header((height, width), grey)


def _common_size(paths: list[str], headers: list[_Header]) -> tuple[int, int]:
    size = headers[0].size
    for path, header in zip(paths, headers, strict=True):
        if header.size != size:
            raise RequestError(
                f"the images differ in size: {paths[0]} is {size[0]}x{size[1]} and {path} is "
                f"{header.size[0]}x{header.size[1]} (height x width); say which size to bring "
                f"them to with --image_size=HEIGHTxWIDTH, such as --image_size={size[0]}x{size[1]}"
            )
    return size


def _examples(paths: list[str], labels: list[int], *, shape: tuple[int, int, int]) -> Examples:
    with tf.device("CPU"):
        all_paths = tf.constant(paths)
        all_labels = tf.constant(labels, tf.int32)

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU"):
            return tf.gather(all_paths, positions), tf.gather(all_labels, positions)

    def decode_file(path: bytes) -> np.ndarray:
        return read_image(os.fsdecode(path), channels=shape[2])

    def decode(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = python_op(decode_file, [path], tf.uint8)
        image = resize(tf.ensure_shape(image, (None, None, shape[2])), shape[:2])
        return tf.ensure_shape(image, shape), label

    return Examples(num_examples=len(paths), read=read, decode=decode)
