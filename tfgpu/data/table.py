"""Tables: the files of their splits, and the `Source` that columns are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.data.cells import spelled
from tfgpu.data.columns import Column
from tfgpu.data.file_contents import fingerprints
from tfgpu.data.file_notes import image_remarks, notes
from tfgpu.data.file_tree import Remarks
from tfgpu.data.folder import decode_image, image_feature
from tfgpu.data.image_files import read_headers
from tfgpu.data.records import Feature, Records, Schema, Source, refuse_new_classes
from tfgpu.errors import DataError, RequestError

_SPLITS = ("train", "test", "validation")


def table_files(rest: str, extension: str) -> dict[str, str]:
    """The file of each split: of a path, or of a folder with one called train.

    Raises:
        RequestError: There is none.
    """
    path = os.path.expanduser(rest)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise RequestError(f"there is no file {path!r}: {extension}: needs the path of a table")
        return {"train": path}
    files = {name: os.path.join(path, f"{name}.{extension}") for name in _SPLITS}
    found = {name: file for name, file in files.items() if os.path.isfile(file)}
    if "train" not in found:
        raise RequestError(f"the folder {path!r} has no train.{extension}: name the table itself")
    return found


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 of the contents of files by split, in hexadecimal.

    Raises:
        DataError: One cannot be read.
    """
    found = hashlib.sha256()
    for name, path in files.items():
        try:
            found.update(f"{name} {os.path.getsize(path)}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return found.hexdigest()


def columns_source(
    columns: Sequence[Column],
    ends: Mapping[str, tuple[int, int]],
    *,
    requested: str,
    fingerprint: str,
    folder_of: str,
) -> Source:
    """The data set that columns are.

    Args:
        columns: All rows of all splits.
        ends: Of each split the first row, and the one after the last.
        requested: How the user named the data set.
        fingerprint: Of the content.
        folder_of: A file of the table: names of images are relative to its folder.

    Raises:
        DataError: An image is not there, or is none.
    """
    folder = os.path.dirname(folder_of)
    rows = max(end for _, end in ends.values())
    features = {column.name: column.feature(rows) for column in columns}
    by_name = {column.name: column for column in columns}
    images = {
        column.name: found
        for column in columns
        if column.images and (found := _image_files(column, folder)) is not None
    }
    features |= {name: feature for name, (feature, *_) in images.items()}
    if images:
        fingerprint = _with_files(fingerprint, folder, images)
    separators: dict[str, str] = {}
    for column in columns:
        of_lists = column.list_feature(beside_images=bool(images))
        if of_lists is not None:
            features[column.name], separators[column.name] = of_lists
    for name, feature in features.items():
        if feature.kind in ("number", "id") and feature.dtype != "string":
            by_name[name].strings = []  # The numbers are what is read.
    values: dict[str, tf.Tensor] = {}

    def column_of(name: str, missing: bool) -> tf.Tensor:
        column = by_name[name]
        column.refuse_unusable(missing=missing or name in separators)
        if name not in values:
            with tf.init_scope(), tf.device("CPU"):
                if name in images:
                    values[name] = tf.constant(images[name][1])
                elif name in separators:
                    values[name] = column.lists(features[name], separators[name])
                else:
                    values[name] = column.values(features[name])
            by_name[name].drop()
        return values[name]

    def select(
        names: tuple[str, ...], missing: bool = False
    ) -> Callable[..., dict[str, tf.Tensor]]:
        found = {name: column_of(name, missing) for name in names}

        # Of one row and of many alike, but for images, which may differ in size.
        def decode(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.device("CPU"):
                cells = {name: tf.gather(column, positions) for name, column in found.items()}
                for name in images.keys() & cells.keys():
                    cells[name] = decode_image(cells[name], images[name][0])
                return cells

        return decode

    whole = Records(
        rows,
        lambda positions: (positions,),
        select,
        select_batch=select,
        select_missing=lambda names: select(names, missing=True),
    )

    def classes_of(name: str, split_name: str = "train") -> list[str]:
        start, end = ends[split_name]
        cells = np.unique(column_of(name, True)[start:end].numpy())
        if features[name].kind == "class":
            return [features[name].class_names[cell] for cell in cells if cell >= 0]
        return [spelled(cell) for cell in cells.tolist()]

    def split(split_name: str, label: str | None = None) -> Records | None:
        if split_name not in ends:
            return None
        start, end = ends[split_name]
        if label is not None and split_name != "train" and features[label].class_names:
            refuse_new_classes(
                requested, label, split_name, classes_of(label, split_name), classes_of(label)
            )
        return whole if (start, end) == (0, rows) else whole.take(np.arange(start, end))

    texts = [name for name, feature in features.items() if feature.kind == "text"]
    classes = [name for name, feature in features.items() if feature.kind == "class"]
    inputs = list(images) or texts
    only = len(inputs) == 1 and len(classes) == 1
    return Source(
        name=requested,
        fingerprint=fingerprint,
        schema=Schema(
            requested=requested,
            features=features,
            supervised=(inputs[0], classes[0]) if only else None,
        ),
        split=split,
        notes=tuple(line for _, _, lines in images.values() for line in lines),
    )


_Images = tuple[Feature, list[str], tuple[str, ...]]


def _image_files(column: Column, folder: str) -> _Images | None:
    """The feature of a column of names of image files, their paths, and lines for the user.

    Returns:
        None where no file is there: then the column is strings.

    Raises:
        DataError: Another is not there, or one is no image.
    """
    cells = [cell.decode() for some in column.strings for cell in some.numpy()]
    paths = [os.path.join(folder, cell) for cell in cells]
    places = {path: i for i, path in reversed(list(enumerate(paths)))}
    distinct = list(places)
    there = list(map(os.path.isfile, distinct))
    if not any(there):
        return None
    for path, is_there in zip(distinct, there, strict=True):
        if not is_there:
            raise DataError(
                f"{path} is not there, which row {places[path] + 1} names in the column "
                f"{column.name!r}; put the image there, or take the row away"
            )
    headers = read_headers(distinct)
    lines = notes(Remarks(), {"train": distinct}, image_remarks(distinct, headers))
    return image_feature(distinct, headers), paths, lines


def _with_files(fingerprint: str, folder: str, images: Mapping[str, _Images]) -> str:
    """A fingerprint that has files in it too."""
    paths = sorted({path for _, some, _ in images.values() for path in some})
    contents = fingerprints(paths, folder or os.curdir)
    return hashlib.sha256(json.dumps([fingerprint, contents]).encode()).hexdigest()
