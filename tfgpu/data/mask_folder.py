"""`folder:PATH` with `images` and `masks`: a class for each pixel.

    PATH/{train,test}/{images,masks}/*.png      or      PATH/{images,masks}/*.png

An image and its mask have the same name, but for the extension. A mask is a grey or an indexed
image whose values are classes; the names of classes may stand in `PATH/classes.txt`, one a line, in
the order of the values from 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import python_op
from tfgpu.data.file_contents import fingerprints
from tfgpu.data.file_notes import image_remarks, notes, turned_note
from tfgpu.data.file_tree import FileTree, Remarks
from tfgpu.data.folder import decode_image, find_images, image_feature
from tfgpu.data.image_files import EXTENSIONS, TURNED, opened, read_headers, upright
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError, shown

CLASSES = "classes.txt"

_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_SHOWN = 3  # Names in a message about many.


def open_mask_folders(path: str, root: str, split_dirs: dict[str, str], left: Remarks) -> Source:
    """Opens a directory of images and masks.

    Args:
        path: As the user wrote it.
        root: The directory.
        split_dirs: The directory of each split, which holds `images` and `masks`.
        left: What was left out so far.

    Raises:
        DataError: A file cannot be read, an image has no mask or a mask no image, or the two
            differ in size.
    """
    linked = []
    pairs = {}
    for split_name, directory in split_dirs.items():
        pairs[split_name], trees = _pairs(directory)
        for tree in trees:
            left.merge(tree.left.to_json())
            linked.append(tree.has_links)
    images = [image for of_split in pairs.values() for image, _ in of_split]
    masks = [mask for of_split in pairs.values() for _, mask in of_split]
    headers, mask_headers = read_headers(images), read_headers(masks)
    for image, mask, header, mask_header in zip(images, masks, headers, mask_headers, strict=True):
        if header.size != mask_header.size:
            turned = f" {TURNED}" if header.turned else ""
            raise DataError(
                f"{shown(image)} is {_size(header.size)}{turned} and its mask {shown(mask)} is "
                f"{_size(mask_header.size)} (height x width): they must be of one size"
            )
    names = _class_names(root)
    feature = image_feature(images, headers)
    features = {
        "image": feature,
        "mask": Feature(
            kind="mask",
            shape=(*feature.shape[:2], 1),
            dtype="uint8",
            class_names=names,
            described="masks",
        ),
        "file": Feature(kind="id", dtype="string", described="the file of the mask"),
    }
    named = fingerprints([*images, *masks], root)
    fingerprint = hashlib.sha256(json.dumps([named, names]).encode()).hexdigest()

    lines = notes(
        left,
        {name: [image for image, _ in of_split] for name, of_split in pairs.items()},
        image_remarks(images, headers),
        linked=any(linked),
    )
    lines += turned_note(images, headers, "masks")

    def split(split_name: str, label: str | None = None) -> Records | None:
        return _records(pairs[split_name], feature) if split_name in pairs else None

    return Source(
        name=f"folder:{path}",
        fingerprint=fingerprint,
        schema=Schema(requested=f"folder:{path}", features=features, supervised=("image", "mask")),
        split=split,
        notes=lines,
    )


def read_mask(path: str) -> np.ndarray:
    """Decodes a mask.

    Args:
        path: The file.

    Returns:
        uint8 [H, W, 1]: the values of a grey image, the indices of an indexed one.

    Raises:
        DataError: It cannot be read, is a colour image, or has values above 255.
    """
    with opened(path) as file:
        if file.format in ("JPEG", "MPO", "JPEG2000"):
            raise DataError(
                f"{shown(path)} is a JPEG, which changes the values of a mask: write it as a PNG"
            )
        if file.mode not in _MASK_MODES:
            raise DataError(
                f"{shown(path)} is a colour image ({file.mode}): the mask of an image has a class "
                "for each pixel, as a grey or an indexed image"
            )
        values = np.asarray(upright(file), np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        raise DataError(
            f"{shown(path)} has the value {int(values.max())}: a mask has values from 0 to 255, "
            "one for each class"
        )
    return values.astype(np.uint8)[..., None]


def is_one_bit(path: str) -> bool:
    """Whether a mask has one bit a pixel, and so 1 where others may have 255."""
    with opened(path) as file:
        return bool(file.mode == "1")


def _pairs(directory: str) -> tuple[list[tuple[str, str]], list[FileTree]]:
    """The images of a split with their masks, sorted by name, and what they were found in.

    Raises:
        DataError: One has no partner.
    """
    found, trees = {}, []
    for part in ("images", "masks"):
        place = os.path.join(directory, part)
        if not os.path.isdir(place):
            raise DataError(
                f"the folder {shown(directory)} holds no folder {part!r}: a mask for each image "
                "belongs in masks/, the images in images/"
            )
        trees.append(FileTree(EXTENSIONS, root=place))
        found[part] = _by_name(place, trees[-1])
        if not found[part]:
            raise DataError(f"the folder {shown(place)} holds no images ({', '.join(EXTENSIONS)})")
    images, masks = found["images"], found["masks"]
    for some, others, what, other in (
        (images, masks, "image", "mask"),
        (masks, images, "mask", "image"),
    ):
        alone = sorted(some.keys() - others.keys())
        if alone:
            named = ", ".join(shown(some[name]) for name in alone[:_SHOWN])
            more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
            plural = "has" if len(alone) == 1 else "have"
            raise DataError(
                f"{named}{more} {plural} no {other} of the same name; give each {what} one, or "
                "take it away"
            )
    ordered = sorted(images, key=lambda name: pathlib.PurePath(name).parts)
    return [(images[name], masks[name]) for name in ordered], trees


def _by_name(place: str, tree: FileTree) -> dict[str, str]:
    """Image files below a folder, by their path in it without the extension.

    Paths are compared in Unicode's composed form: macOS decomposes those of one of the two folders
    where it has packed it.
    """
    found: dict[str, str] = {}
    for path in find_images(place, tree):
        name = unicodedata.normalize("NFC", os.path.splitext(os.path.relpath(path, place))[0])
        if name in found:
            raise DataError(
                f"{shown(found[name])} and {shown(path)} have the same name; take one away"
            )
        found[name] = path
    return found


def _class_names(root: str) -> tuple[str, ...]:
    path = os.path.join(root, CLASSES)
    if not os.path.exists(path):
        return ()
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    names = tuple(line.strip() for line in "\n".join(lines).rstrip().splitlines())
    if not all(names):
        raise DataError(
            f"{path}, line {names.index('') + 1} is empty, and the names are of the values from 0 "
            "on, one a line: name that class, or take the line away"
        )
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(f"{path} must name two classes or more, each once, one a line")
    return names


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _records(pairs: list[tuple[str, str]], image: Feature) -> Records:
    with tf.device("CPU"):
        images = tf.constant([os.fsencode(path) for path, _ in pairs])
        masks = tf.constant([os.fsencode(path) for _, path in pairs])

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU"):
            return tf.gather(images, positions), tf.gather(masks, positions)

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        def decode(path: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
            found = {"file": mask}
            if "image" in names:
                found["image"] = decode_image(path, image)
            if "mask" in names:
                values = python_op(lambda file: read_mask(os.fsdecode(file)), [mask], tf.uint8)
                found["mask"] = tf.ensure_shape(values, (None, None, 1))
            return {name: found[name] for name in names}

        return decode

    return Records(len(pairs), read, select)
