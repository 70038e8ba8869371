"""`folder:PATH`: the user's own images, one directory a class.

    PATH/{train,test}/CLASS/*.png      or      PATH/CLASS/*.png

With directories `images` and `masks` in the place of those of classes it is
`tfgpu.data.mask_folder`'s, with WAV files and no images `tfgpu.data.wav_folder`'s. Which of
`train`, `test`, `validation` (or `val`) is the test split, `tfgpu.tasks.loading` decides.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfgpu.data.examples import python_op
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.data.wav_folder import holds_recordings, open_wav_folders
from tfgpu.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_SPLIT_DIRS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val")}
_ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 are quarter turns.


class Header(NamedTuple):
    """What an image file says before it is decoded."""

    size: tuple[int, int]  # height, width
    grey: bool


def open_folder(path: str) -> Source:
    """Opens a directory of images.

    The number of channels comes from the data: 1 when every image is grey, else 3.

    Args:
        path: Holds `train` (and `test`, `validation` or `val`) with one directory a class each, or
            the directories of the classes themselves. Images lie in them at any depth; files that
            are not images by their extension are left. With `images` and `masks` instead:
            see `tfgpu.data.mask_folder`. With WAV files and no images: see
            `tfgpu.data.wav_folder`.

    Raises:
        DataError: The directory or an image cannot be read, or there are fewer than two classes,
            or a class has no images or is unknown to the training split.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(root):
        raise DataError(f"the folder {path!r} does not exist")
    if not os.path.isdir(root):
        raise DataError(f"{path!r} is not a folder")
    split_dirs = {"train": root}
    if "train" in subdirectories(root):
        split_dirs = {
            split: os.path.join(root, name)
            for split, names in _SPLIT_DIRS.items()
            for name in names
            if name in subdirectories(root)
        }
    parts, found_there = {"images", "masks"}, set(subdirectories(split_dirs["train"]))
    if parts <= found_there or (found_there and found_there <= parts):
        from tfgpu.data.mask_folder import open_mask_folders

        return open_mask_folders(path, root, split_dirs)
    if holds_recordings(split_dirs["train"], others=EXTENSIONS):
        return open_wav_folders(path, root, split_dirs)
    found = {split: _find_classes(directory) for split, directory in split_dirs.items()}
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
    headers = read_headers(every_path)
    relative = sorted((os.path.relpath(p, root), os.path.getsize(p)) for p in every_path)
    images = image_feature(every_path, headers)
    features = {
        "image": images,
        "label": Feature(
            kind="class", dtype="int32", class_names=class_names, described="the folder of a class"
        ),
    }

    def split(split_name: str, label: str | None = None) -> Records | None:
        if split_name not in files:
            return None
        return _records(*files[split_name], image=images)

    return Source(
        name=f"folder:{path}",
        fingerprint=hashlib.sha256(json.dumps(relative).encode()).hexdigest(),
        schema=Schema(requested=f"folder:{path}", features=features, supervised=("image", "label")),
        split=split,
    )


def image_feature(paths: list[str], headers: list[Header]) -> Feature:
    """The feature that images of files are: one channel when every image is grey, else 3."""
    channels = 1 if all(header.grey for header in headers) else 3
    size: tuple[int | None, int | None] = headers[0].size
    varies = _other_size(paths, headers)
    return Feature(
        kind="image",
        shape=(*((None, None) if varies else size), channels),
        dtype="uint8",
        varies=varies,
        described=f"images of {channels} channel{'s' * (channels > 1)}",
    )


def read_headers(paths: list[str]) -> list[Header]:
    """Reads size and kind of images, without decoding them.

    Raises:
        DataError: One cannot be read as an image.
    """
    # Threads because opening waits for the disk.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(_read_header, paths, chunksize=64))


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
    with opened(path) as file:
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
def opened(path: str) -> Iterator[Image.Image]:
    """Opens an image; what is found to be wrong with it is a DataError."""
    try:
        with Image.open(path) as file:
            yield file
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks.
        raise DataError(f"{path} cannot be read: {error}") from None


def subdirectories(directory: str) -> list[str]:
    """The sorted names of the directories in one; those that begin with a dot are left."""
    try:
        with os.scandir(directory) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {directory} cannot be read: {error.strerror}") from None


def _find_classes(directory: str) -> dict[str, list[str]]:
    """Returns the sorted images of each class."""
    return {name: find_images(os.path.join(directory, name)) for name in subdirectories(directory)}


def find_images(directory: str) -> list[str]:
    """Returns the image files below a directory, at any depth, sorted.

    Raises:
        DataError: A directory cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}")

    images = [
        os.path.join(parent, file)
        for parent, _, names in os.walk(directory, onerror=fail)
        for file in names
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    ]
    # By parts, so that the order does not depend on the separator of the system.
    return sorted(images, key=lambda image: pathlib.PurePath(image).parts)


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


def _read_header(path: str) -> Header:
    with opened(path) as image:
        width, height = image.size
        # Of a PNG, Pillow would read all to find EXIF, so only a JPEG is ever turned.
        if image.format in ("JPEG", "MPO") and image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
        return Header((height, width), grey)


def _other_size(paths: list[str], headers: list[Header]) -> str:
    """What to say of images that differ in size; "" where they do not."""
    size = headers[0].size
    for path, header in zip(paths, headers, strict=True):
        if header.size != size:
            return (
                f"the images differ in size: {paths[0]} is {size[0]}x{size[1]} and {path} is "
                f"{header.size[0]}x{header.size[1]} (height x width); say which size to bring "
                f"them to with --image_size=HEIGHTxWIDTH, such as --image_size={size[0]}x{size[1]}"
            )
    return ""


def _records(paths: list[str], labels: list[int], *, image: Feature) -> Records:
    with tf.device("CPU"):
        all_paths = tf.constant(paths)
        all_labels = tf.constant(labels, tf.int32)

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU"):
            return tf.gather(all_paths, positions), tf.gather(all_labels, positions)

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        def decode(path: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
            found = {"label": label}
            if "image" in names:
                found["image"] = decode_image(path, image)
            return {name: found[name] for name in names}

        return decode

    return Records(len(paths), read, select)


def decode_image(path: tf.Tensor, feature: Feature) -> tf.Tensor:
    """An image file, decoded inside a `tf.data` map.

    Args:
        path: Scalar string.
        feature: What `image_feature` returned.

    Returns:
        uint8 of the feature's shape.
    """
    channels = feature.shape[2]
    assert channels is not None

    def decode(path: bytes) -> np.ndarray:
        return read_image(os.fsdecode(path), channels=channels)

    # Its shape is not said from the header, which is not read again: `resize` makes it right.
    image = python_op(decode, [path], tf.uint8)
    return tf.ensure_shape(image, (None, None, channels))
