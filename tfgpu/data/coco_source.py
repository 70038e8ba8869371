"""`coco:FILE.json`: boxes in the annotation format of COCO, with the images beside it.

    coco:boxes.json             one file; a tenth of its images is picked for the test, by the seed
    coco:boxes.json,PHOTOS      the same, with the images in the folder PHOTOS
    coco:FOLDER                 a file for each split

Of a folder the files are found as COCO and the common tools lay them out, with SPLIT `train`,
`test`, and `val`, `valid` or `validation`:

    FOLDER/SPLIT.json
    FOLDER/annotations/SPLIT.json
    FOLDER/annotations/instances_SPLIT2017.json     or with another year, or with none
    FOLDER/SPLIT/_annotations.coco.json

An image lies where its `file_name` says, from the folder of the JSON file or from one of the usual
names near it: `images`, `SPLIT`, `SPLIT2017`, `images/SPLIT2017`. Of an annotation `image_id`,
`category_id`, `bbox` ([left, top, width, height] in pixels) and `iscrowd` are read.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.file_contents import fingerprints
from tfgpu.data.file_notes import image_remarks, notes, turned_note
from tfgpu.data.file_tree import Remarks
from tfgpu.data.folder import decode_image, image_feature
from tfgpu.data.image_files import TURNED, Header, read_headers
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError, RequestError, shown

_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
_CROWD = {None: False, 0: False, 1: True, "0": False, "1": True}
_MOST_PIXELS = 1e9  # Of a coordinate.
_BEYOND = 1.0  # Pixels that a box may reach beyond its image without being counted: rounding.


@dataclasses.dataclass
class _Annotations:
    """One JSON file.

    Attributes:
        path: Of the file.
        names: Of the categories, in the order of their ids.
        images: The file of each image.
        sizes: (height, width) of each, as the JSON says; None where it does not.
        offsets: int64 (images + 1): where the boxes of each image begin.
        boxes: float64 (boxes, 4): left, top, width, height, in pixels.
        labels: int64 (boxes,): positions in `names`.
        crowd: bool (boxes,).
        ids: What each annotation is called in messages.
        notes: Lines for the user.
    """

    path: str
    names: tuple[str, ...]
    images: list[str]
    sizes: list[tuple[float, float] | None]
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ids: list[str]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> list[Any]:
        """What the fingerprint is made of, but for the images."""
        arrays = (self.offsets, self.boxes, self.labels, self.crowd)
        return [self.names, *(hashlib.sha256(a.tobytes()).hexdigest() for a in arrays)]


def open_source(rest: str) -> Source:
    """Opens annotations with their images.

    Args:
        rest: A JSON file, a JSON file and a folder of images with a comma between, or a folder.

    Raises:
        RequestError: A folder has no file for training.
        DataError: A file is not COCO's JSON or says what cannot be, or an image is missing,
            cannot be read, or is of another size than the JSON says.
    """
    path, _, folder = rest.partition(",")
    if os.path.exists(os.path.expanduser(rest)):
        path, folder = rest, ""
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(root):
        raise DataError(f"{path!r} does not exist: give coco:FILE.json, or coco:FOLDER")
    files = _files(path, root) if os.path.isdir(root) else {"train": root}
    found = {split: _read(file) for split, file in files.items()}
    if not len(found["train"].boxes):
        raise DataError(f"{found['train'].path} has no annotations: there is nothing to learn")
    names = found["train"].names
    for each in found.values():
        _take_names(each, names, found["train"].path)
    images = {
        part: _find_images(each, part, os.path.abspath(os.path.expanduser(folder or "")), folder)
        for part, each in found.items()
    }
    every = [image for some in images.values() for image in some]
    headers = read_headers(every)
    feature = image_feature(every, headers)
    by_path = dict(zip(every, headers, strict=True))
    records = {}
    for part, each in found.items():
        fractions = _fractions(each, images[part], by_path)
        records[part] = _records(each, images[part], fractions, feature)
    relative = [
        [part, os.path.basename(image), *content]
        for part, some in images.items()
        for image, (_, *content) in zip(some, fingerprints(some, ""), strict=True)
    ]
    content = [relative, [each.digest for each in found.values()]]
    features = {
        "image": feature,
        "boxes": Feature(
            kind="boxes",
            class_names=names,
            described=f"boxes of {len(names)} categor{'y' if len(names) == 1 else 'ies'}",
            parts={"box": "bbox", "class": "label", "crowd": "is_crowd"},
        ),
        "file": Feature(kind="id", dtype="string", described="the file of the image"),
    }

    def split(split_name: str, label: str | None = None) -> Records | None:
        if split_name not in records or (label == "boxes" and not len(found[split_name].boxes)):
            return None
        return records[split_name]

    return Source(
        name=f"coco:{rest}",
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        schema=Schema(requested=f"coco:{rest}", features=features, supervised=("image", "boxes")),
        split=split,
        notes=(
            *notes(Remarks(), images, image_remarks(every, headers)),
            *turned_note(by_path, by_path.values(), "boxes"),
            *(note for each in found.values() for note in each.notes),
        ),
    )


def _files(path: str, root: str) -> dict[str, str]:
    """The JSON file of each split in a folder.

    Raises:
        RequestError: There is none to train on.
    """
    found = {}
    for split, spellings in _SPLITS.items():
        names = "|".join(spellings)
        patterns = (
            rf"({names})\.json",
            rf"annotations/({names})\.json",
            rf"(annotations/)?instances_({names})\d*\.json",
            rf"({names})/_annotations\.coco\.json",
        )
        for pattern in patterns:
            fitting = sorted(p for p in _json_files(root) if re.fullmatch(pattern, p))
            if len(fitting) > 1:
                raise RequestError(
                    f"the folder {path!r} has {' and '.join(fitting)}: name one file, as "
                    f"coco:{os.path.join(path, fitting[0])}"
                )
            if fitting:
                found[split] = os.path.join(root, fitting[0])
                break
    if "train" not in found:
        raise RequestError(
            f"the folder {path!r} has no train.json, annotations/instances_train*.json or "
            "train/_annotations.coco.json: name the file itself, as coco:FILE.json"
        )
    return found


def _json_files(root: str) -> Iterator[str]:
    """JSON files in a folder and in those below it, by their path from it."""
    for place in ("", *sorted(e.name for e in os.scandir(root) if e.is_dir())):
        for name in sorted(os.listdir(os.path.join(root, place))):
            if name.endswith(".json"):
                yield f"{place}/{name}" if place else name


# ---- one file ------------------------------------------------------------------------------


def _read(path: str) -> _Annotations:
    """Reads a JSON file.

    Raises:
        DataError: It is not COCO's, or an annotation is of no image or category, or has no box.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(
                f"{path} is not an annotation file of COCO: it must be an object with the lists "
                f"images, annotations and categories, and has no list {part!r}"
            )
    categories = _by_id(path, content["categories"], "category", "name")
    images = _by_id(path, content["images"], "image", "file_name")
    if not images:
        raise DataError(f"{path} names no images")
    if len({isinstance(key, str) for key in categories}) > 1:
        raise DataError(f"{path} has numbers and strings among its category ids; use numbers")
    order = sorted(categories)
    names = tuple(str(categories[i]["name"]) for i in order)
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        what = f"two categories {twice[0]!r}" if twice else "no categories"
        raise DataError(f"{path} has {what}: each kind of object needs one, of a name of its own")
    number = {key: i for i, key in enumerate(order)}
    position = {key: i for i, key in enumerate(images)}
    rows: list[list[tuple[tuple[float, ...], int, bool, str]]] = [[] for _ in images]
    for at, each in enumerate(content["annotations"]):
        one = each if isinstance(each, dict) else {}
        called = f"annotation {_short(one['id']) if 'id' in one else f'number {at + 1}'}"
        if not _is_id(one.get("image_id")) or one["image_id"] not in position:
            raise DataError(
                f"{path}, {called}: image_id {_short(one.get('image_id'))} is none of its images"
            )
        file = images[one["image_id"]]["file_name"]
        if not _is_id(one.get("category_id")) or one["category_id"] not in number:
            known = ", ".join(f"{i} ({categories[i]['name']})" for i in order[:10])
            raise DataError(
                f"{path}, {called} of {file}: category_id {_short(one.get('category_id'))} is none "
                f"of its categories, {known}{', ...' if len(order) > 10 else ''}"
            )
        box = _box(one.get("bbox"))
        if box is None:
            raise DataError(
                f"{path}, {called} of {file}: bbox {_short(one.get('bbox'))} is not "
                "[left, top, width, height], four numbers in pixels"
            )
        said = one.get("iscrowd")
        if isinstance(said, list | dict) or said not in _CROWD:
            raise DataError(
                f"{path}, {called} of {file}: iscrowd {_short(said)} is neither 0 nor 1"
            )
        crowd = _CROWD[said]
        rows[position[one["image_id"]]].append((box, number[one["category_id"]], crowd, called))
    flat = [row for some in rows for row in some]
    return _Annotations(
        path=path,
        names=names,
        images=[str(image["file_name"]) for image in images.values()],
        sizes=[_size(image) for image in images.values()],
        offsets=np.cumsum([0, *map(len, rows)]),
        boxes=np.array([row[0] for row in flat], np.float64).reshape(-1, 4),
        labels=np.array([row[1] for row in flat], np.int64),
        crowd=np.array([row[2] for row in flat], bool),
        ids=[row[3] for row in flat],
    )


def _by_id(path: str, rows: Sequence[Any], what: str, needed: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for at, row in enumerate(rows):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("id"), int | str)
            or isinstance(row["id"], bool)
            or not isinstance(row.get(needed), str)
            or not row[needed]
        ):
            raise DataError(
                f"{path} is not an annotation file of COCO: {what} number {at + 1} has no id or "
                f"no {needed}"
            )
        if row["id"] in found:
            raise DataError(f"{path} has two of the {what} id {row['id']!r}")
        found[row["id"]] = row
    return found


def _box(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
        return None
    # Whole numbers of JSON may be too large for a float; NaN is not below anything.
    if not all(abs(x) < _MOST_PIXELS for x in value):
        return None
    return tuple(map(float, value))


def _size(image: Mapping[str, Any]) -> tuple[float, float] | None:
    size = image.get("height"), image.get("width")
    if all(isinstance(side, int | float) for side in size):
        height, width = (min(side, _MOST_PIXELS) for side in size)  # type: ignore[type-var]
        return float(height), float(width)  # type: ignore[arg-type]
    return None


def _is_id(value: Any) -> bool:
    """Whether a value may be the id of something; a list of JSON could not even be looked up."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """A value of JSON for a message."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _take_names(found: _Annotations, names: tuple[str, ...], train: str) -> None:
    """Numbers the categories of a file as those of the training file are.

    Raises:
        DataError: An annotation is of a category that the training file does not have.
    """
    if found.names == names:
        return
    table = {name: i for i, name in enumerate(names)}
    for label, called in zip(found.labels, found.ids, strict=True):
        if found.names[label] not in table:
            raise DataError(
                f"{found.path}, {called}: the category {found.names[label]!r} is unknown to "
                f"{train}, which has {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            )
    translated = np.array([table.get(name, -1) for name in found.names], np.int64)
    found.labels = translated[found.labels]
    found.names = names


def _find_images(found: _Annotations, split: str, given: str, asked: str) -> list[str]:
    """The path of each image.

    Raises:
        DataError: One is missing.
    """
    here = os.path.dirname(found.path)
    parent = os.path.dirname(here)
    if asked:
        places = [given]
    else:
        stem = Path(found.path).stem.removeprefix("instances_")
        names = dict.fromkeys(["", "images", stem, *_SPLITS[split], *(f"images/{stem}",)])
        names |= dict.fromkeys(f"images/{name}" for name in _SPLITS[split])
        places = [os.path.join(root, name) for root in (here, parent) for name in names]
    paths = []
    for name in found.images:
        for i, place in enumerate(places):
            path = os.path.join(place, name)
            if os.path.isfile(path):
                if i:  # Where the others are, most likely.
                    places.insert(0, places.pop(i))
                break
        else:
            where = f"the folder {asked}" if asked else f"{here} or a folder near it"
            raise DataError(
                f"{found.path} names the image {name}, which is not in {where}: put it there, or "
                f"name the folder of the images, as coco:{os.path.basename(found.path)},FOLDER"
            )
        paths.append(path)
    return paths


def _fractions(
    found: _Annotations, images: Sequence[str], headers: Mapping[str, Header]
) -> np.ndarray:
    """The boxes as fractions of their images, float32 (boxes, 4): top, left, bottom, right.

    Boxes without area become such of zeros; what reaches beyond an image is cut.

    Raises:
        DataError: A box lies outside of its image, or an image is of another size than is said.
    """
    per_box = np.zeros((len(found.boxes), 2))
    for at, (image, said) in enumerate(zip(images, found.sizes, strict=True)):
        size = headers[image].size
        if said is not None and said != size:
            turned = f" {TURNED}" if headers[image].turned else ""
            raise DataError(
                f"{shown(image)} is {size[0]}x{size[1]} (height x width){turned} and {found.path} "
                f"says {said[0]:g}x{said[1]:g}: its boxes would be of another image"
            )
        per_box[found.offsets[at] : found.offsets[at + 1]] = size
    (twice, _), *_ = collections.Counter(images).most_common(1)
    several = len(images) - len(set(images))
    if several:
        found.notes += (
            f"images: {several:,} of {len(images):,} are a file that another image of {found.path} "
            f"is too, such as {shown(twice)}: each is learnt with the boxes of its own id alone",
        )
    left, top, wide, high = found.boxes.T
    height, width = per_box.T
    empty = (wide <= 0) | (high <= 0)
    within = (np.max(found.boxes, axis=1) <= 1) & (left + wide <= 1) & (top + high <= 1)
    if not empty.all() and (within | empty).all() and per_box.max() > 1:
        raise DataError(
            f"all boxes of {found.path} lie within the first pixel of their image, such as "
            f"{_called(found, int((~empty).argmax()))}: they seem to be fractions of it, and must "
            "be [left, top, width, height] in pixels"
        )
    outside = ~empty & ((left >= width) | (top >= height) | (left + wide <= 0) | (top + high <= 0))
    if outside.any():
        at = int(outside.argmax())
        raise DataError(
            f"{_called(found, at)} lies outside of the image, which is {height[at]:g}x"
            f"{width[at]:g} (height x width): a box is [left, top, width, height] in pixels"
        )
    if len(empty) and (empty | found.crowd).all():
        what = "is a crowd (iscrowd 1) or without area"
        raise DataError(f"every box of {found.path} {what}: there is nothing to learn or to test")
    furthest = np.max([-left, -top, left + wide - width, top + high - height], axis=0)
    beyond = ~empty & (furthest > _BEYOND) if len(found.boxes) else empty
    for which, what in (
        (empty, "without area, left out"),
        (beyond, "beyond the edge of the image, cut to it"),
        (found.crowd & ~empty, "that are crowds, which are neither learnt nor counted as misses"),
    ):
        if which.any():
            first = _called(found, int(which.argmax()))
            found.notes += (f"boxes {what}: {which.sum():,} of {len(which):,}, such as {first}",)
    corners = np.stack([top / height, left / width, (top + high) / height, (left + wide) / width])
    corners = np.clip(corners.T, 0.0, 1.0).astype(np.float32)
    corners[empty] = 0.0
    return corners


def _called(found: _Annotations, at: int) -> str:
    image = found.images[int(np.searchsorted(found.offsets, at, side="right")) - 1]
    box = ", ".join(f"{value:g}" for value in found.boxes[at])
    return f"{found.path}, {found.ids[at]} of {image}: bbox [{box}]"


def _records(
    found: _Annotations, images: Sequence[str], fractions: np.ndarray, image: Feature
) -> Records:
    with tf.device("CPU"):
        paths = tf.constant(list(images))
        offsets, boxes = tf.constant(found.offsets), tf.constant(fractions)
        labels, crowd = tf.constant(found.labels), tf.constant(found.crowd)

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU"):
            first, last = tf.gather(offsets, positions), tf.gather(offsets, positions + 1)
            return tf.gather(paths, positions), first, last

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        def decode(path: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> dict[str, Any]:
            found: dict[str, Any] = {"file": path}
            if "image" in names:
                found["image"] = decode_image(path, image)
            if "boxes" in names:
                with tf.device("CPU"):
                    found["boxes"] = {
                        "bbox": boxes[first:last],
                        "label": labels[first:last],
                        "is_crowd": crowd[first:last],
                    }
            return {name: found[name] for name in names}

        return decode

    return Records(len(images), read, select)
