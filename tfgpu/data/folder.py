"""`folder:PATH`: the user's own images, one directory a class.

    PATH/{train,test}/CLASS/*.png      or      PATH/CLASS/*.png

With directories `images` and `masks` in the place of those of classes it is
`tfgpu.data.mask_folder`'s, with WAV files and no images `tfgpu.data.wav_folder`'s. Which of
`train`, `test`, `validation` (or `val`) is the test split, `tfgpu.tasks.loading` decides.
"""

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfgpu.data.class_folders import by_parts, find_classes
from tfgpu.data.examples import python_op
from tfgpu.data.file_contents import fingerprints
from tfgpu.data.file_notes import image_remarks, notes
from tfgpu.data.file_tree import FileTree, Remarks, subdirectories
from tfgpu.data.image_files import EXTENSIONS, Header, read_headers, read_image
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.data.wav_folder import holds_recordings, open_wav_folders
from tfgpu.errors import DataError, shown

_SPLIT_DIRS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val")}


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
    left = Remarks()
    split_dirs = {"train": root}
    in_root = subdirectories(root)
    if "train" in in_root:
        split_dirs = {
            split: os.path.join(root, name)
            for split, names in _SPLIT_DIRS.items()
            for name in names
            if name in in_root
        }
        for name in in_root:
            if os.path.join(root, name) not in split_dirs.values():
                left.add("beside the splits", shown(name))
    parts, found_there = {"images", "masks"}, set(subdirectories(split_dirs["train"]))
    if parts <= found_there or (found_there and found_there <= parts):
        from tfgpu.data.mask_folder import open_mask_folders

        return open_mask_folders(path, root, split_dirs, left)
    if holds_recordings(split_dirs["train"], others=EXTENSIONS):
        return open_wav_folders(path, root, split_dirs, left)
    found = find_classes(split_dirs, left, extensions=EXTENSIONS, what="images")
    class_names, files = found.names, found.files
    every_path = [image for paths, _ in files.values() for image in paths]
    headers = read_headers(every_path)
    relative = fingerprints(every_path, root)
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
        notes=notes(
            left,
            {split: paths for split, (paths, _) in files.items()},
            image_remarks(every_path, headers),
            class_names=class_names,
            linked=found.linked,
        ),
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


def find_images(directory: str, tree: FileTree | None = None) -> list[str]:
    """Returns the image files below a directory, at any depth, sorted.

    Args:
        directory: Where to look.
        tree: Finds them, and has what it left; None where nobody wants to know.

    Raises:
        DataError: A directory cannot be read.
    """
    tree = tree or FileTree(EXTENSIONS, root=directory)
    return by_parts(path for _, path in tree.find([("", directory)]))


def _other_size(paths: list[str], headers: list[Header]) -> str:
    """What to say of images that differ in size; "" where they do not."""
    size = headers[0].size
    for path, header in zip(paths, headers, strict=True):
        if header.size != size:
            return (
                f"the images differ in size: {shown(paths[0])} is {size[0]}x{size[1]} and "
                f"{shown(path)} is {header.size[0]}x{header.size[1]} (height x width); say which "
                "size to bring them to with --image_size=HEIGHTxWIDTH, such as "
                f"--image_size={size[0]}x{size[1]}"
            )
    return ""


def _records(paths: list[str], labels: list[int], *, image: Feature) -> Records:
    with tf.device("CPU"):
        all_paths = tf.constant(list(map(os.fsencode, paths)))
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
