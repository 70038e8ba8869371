"""Segmentation: an image -> a class for each of its pixels."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
from PIL import Image

from tfgpu.data import records
from tfgpu.data.augment import (
    Transformation,
    random_crop,
    random_flip,
    random_resize,
    resize_positions,
)
from tfgpu.data.examples import Examples, data_errors, python_op
from tfgpu.data.gathering import gather
from tfgpu.data.image_files import read_image
from tfgpu.data.mask_folder import is_one_bit
from tfgpu.data.records import Records, Schema
from tfgpu.engine.datasets import untuned
from tfgpu.errors import DataError, RequestError, shown
from tfgpu.machine import hardware
from tfgpu.models.segmentation_loss import VOID, DiceCrossentropy, class_weights
from tfgpu.tasks.parts.image_serving import image_preprocessing, image_reference, inference_model
from tfgpu.tasks.parts.mask_report import MaskReport, overlay, pixel_metrics
from tfgpu.tasks.parts.predictor import ImagePredictor, Written
from tfgpu.tasks.parts.serving import PROBABILITIES, Serving, likeliest
from tfgpu.tasks.task import DataSpec, Reading, Request, Task

_MASK_NAME = re.compile(r"mask|segment|annotation|label", re.IGNORECASE)
_UNKNOWN = 254  # Of values that the training masks do not have, until they are refused.
_MOST_CLASSES = 253


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """An image and a mask: a feature of that kind, or an image that is named like one."""
    images = schema.of_kind("image")
    masks = schema.of_kind("mask") + [name for name in images if _MASK_NAME.search(name)]
    roles = dict(given)
    if "y" not in roles and schema.supervised is not None and schema.supervised[1] in masks:
        roles["y"] = schema.supervised[1]
    if "y" not in roles and len(masks) == 1:
        roles["y"] = masks[0]
    others = [name for name in images if name != roles.get("y")]
    if "x" not in roles and len(others) == 1:
        roles["x"] = others[0]
    if roles.get("x") not in images or roles.get("y") not in {*masks, *images}:
        raise RequestError(
            f"{schema.requested!r} is not a segmentation set: it needs an image and a mask, and "
            f"has {schema.described}; name them with --features=x=NAME,y=NAME"
        )
    return {"x": roles["x"], "y": roles["y"]}


def read(request: Request) -> Reading:
    """uint8 images (height, width, channels) and uint8 masks (height, width) of class numbers."""
    x, y = request.roles["x"], request.roles["y"]
    features = request.schema.features
    requested = request.schema.requested
    shape = records.image_shape(features[x], request.image_size, requested=requested)
    sizes = features[x].shape[:2], features[y].shape[:2]
    if sizes[0] != sizes[1] and None not in (*sizes[0], *sizes[1]):
        (height, width), (high, wide) = sizes
        raise DataError(
            f"{x!r} of {requested!r} are images of {height}x{width} and {y!r} are masks of {high}x"
            f"{wide} (height x width): they must be of one size"
        )
    fitted = dict(request.fitted) if request.fitted is not None else fit(request, y)
    class_names = tuple(fitted["names"])
    table = np.full(256, _UNKNOWN, np.uint8)
    table[fitted["values"]] = np.arange(len(class_names))
    if fitted["void"] is not None:
        table[fitted["void"]] = VOID
    file = ("file",) if "file" in features else ()

    def decode(found: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return records.image(found[x], shape), decode_y(found)

    def decode_y(found: dict[str, tf.Tensor]) -> tf.Tensor:
        values = found[y][..., :1]  # Some sets store a mask three times, as RGB.
        if tuple(values.shape[:2]) != shape[:2]:
            values = tf.image.resize(values, shape[:2], method="nearest")
        values = tf.ensure_shape(values, (*shape[:2], 1))[..., 0]
        mask = tf.gather(tf.constant(table), tf.cast(values, tf.int32))
        known = tf.reduce_all(mask != _UNKNOWN)
        place = found.get("file", tf.constant(b"a mask"))
        return tf.cond(known, lambda: mask, lambda: _refused(values, mask, place))

    def _refused(values: tf.Tensor, mask: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        def refuse(values: np.ndarray, mask: np.ndarray, place: bytes) -> NoReturn:
            raise DataError(
                f"{shown(os.fsdecode(place))} {_strange(values[mask == _UNKNOWN].flat[0], fitted)}"
            )

        return tf.ensure_shape(python_op(refuse, [values, mask, place], tf.uint8), shape[:2])

    def examples(split: str, some: Records) -> Examples:
        if request.fitted is None and split != "train":
            seen, _ = _values(some, y)
            unknown = np.flatnonzero((seen >= 0) & (table == _UNKNOWN))
            if unknown.size:
                where = _file(request, some, int(seen[unknown[0]]), split=split)
                raise DataError(f"{where} {_strange(unknown[0], fitted)}")
        return some.examples((x, y, *file), decode, y_names=(y, *file), decode_y=decode_y)

    spec = DataSpec(
        x=tf.TensorSpec(shape, tf.uint8),
        y=tf.TensorSpec(shape[:2], tf.uint8),
        class_names=class_names,
        fitted=fitted,
    )
    void = "" if fitted["void"] is None else f"; {fitted['void']} is void, and counts nowhere"
    note = f"masks: {len(class_names)} classes, {describe(fitted)}{void}"
    return Reading(spec=spec, examples=examples, notes=(note,))


def _strange(value: int, fitted: Mapping[str, Any]) -> str:
    return (
        f"has the value {value}, and the classes are {describe(fitted)}: mend the mask, or train "
        "on masks that have it"
    )


def describe(fitted: Mapping[str, Any]) -> str:
    """The values of the classes and their names: "0 (background), 1 (foreground)"."""
    pairs = list(zip(fitted["values"], fitted["names"], strict=True))
    shown = [str(v) if str(v) == name else f"{v} ({name})" for v, name in pairs[:12]]
    return ", ".join([*shown, *(["..."] if len(pairs) > 12 else [])])


def fit(request: Request, y: str) -> dict[str, Any]:
    """The values that stand for classes, from the training masks.

    Where the classes are named, they are 0, 1, ...; else every value that a training mask has is
    one. 255 beside more than one other value is void, as in the sets of Pascal VOC and Cityscapes.

    Returns:
        "values" of the masks in the order of the classes, "names", "void", a value or None, and
        "shares" of the classes among the pixels that are not void.

    Raises:
        DataError: There is one class only, or a mask has a value beyond the named classes.
    """
    seen, pixels = _values(request.train, y)
    present = [value for value in range(256) if seen[value] >= 0]
    _refuse_mixed_bits(request, seen)
    names = list(request.schema.features[y].class_names)
    void = VOID if VOID in present and len(present) > 2 else None
    if names:
        void = VOID if VOID in present and len(names) < VOID else None
        beyond = [value for value in present if value >= len(names) and value != void]
        if beyond:
            where = _file(request, request.train, int(seen[beyond[0]]), split="train")
            raise DataError(
                f"{where} has the value {beyond[0]}, and there are {len(names)} classes: values "
                f"from 0 to {len(names) - 1}, and 255 for void"
            )
        values = list(range(len(names)))
        return {"values": values, "names": names, "void": void, "shares": _shares(pixels, values)}
    values = [value for value in present if value != void]
    if len(values) < 2:
        raise DataError(
            f"the training masks of {request.schema.requested!r} hold one value only, "
            f"{values[0] if values else 'none'}: there must be at least two classes to tell apart"
        )
    if len(values) > _MOST_CLASSES:
        raise DataError(
            f"the training masks of {request.schema.requested!r} hold {len(values)} values, more "
            f"than {_MOST_CLASSES} classes: they look like numbers of objects, or like pictures; "
            "give each class a value"
        )
    plain = len(values) == 2 and values[0] == 0
    names = ["background", "foreground"] if plain else [str(value) for value in values]
    return {"values": values, "names": names, "void": void, "shares": _shares(pixels, values)}


def _refuse_mixed_bits(request: Request, seen: np.ndarray) -> None:
    """Refuses masks of one bit among others that have 255 for what is 1 in them.

    Raises:
        DataError: Names one of each.
    """
    if seen[1] < 0 or seen[VOID] < 0 or "file" not in request.schema.features:
        return
    one, other = (_path(request.train, int(seen[value])) for value in (1, VOID))
    if os.path.isfile(one) and is_one_bit(one):
        raise DataError(
            f"{shown(one)} has one bit a pixel, 0 and 1, and {shown(other)} has the value 255: "
            "write all masks with the same values, as 8-bit images"
        )


def _shares(pixels: np.ndarray, values: Sequence[int]) -> list[float]:
    counts = pixels[list(values)]
    total = counts.sum()
    # Of masks that are void everywhere nothing is known.
    return (counts / total if total else np.full(len(values), 1 / len(values))).tolist()


def _values(train: Records, y: str) -> tuple[np.ndarray, np.ndarray]:
    """(256,) of the first example whose mask has each value, -1 for none, and (256,) of pixels."""
    decode = train.select((y,))

    def counts(positions: tf.Tensor) -> tf.Tensor:
        def one(parts: tuple[tf.Tensor, ...]) -> tf.Tensor:
            values = tf.cast(tf.reshape(decode(*parts)[y][..., 0], [-1]), tf.int32)
            return tf.math.bincount(values, minlength=256, maxlength=256)

        read = train.read(positions)
        return tf.map_fn(one, read, fn_output_signature=tf.int32, parallel_iterations=1)

    positions = tf.data.Dataset.range(train.num_examples).batch(16)
    batches = positions.map(counts, num_parallel_calls=hardware.usable_cores())
    first, pixels, start = np.full(256, -1), np.zeros(256), 0
    with data_errors():
        for batch in untuned(batches).as_numpy_iterator():
            found = batch > 0
            new = found.any(axis=0) & (first < 0)
            first[new] = start + found.argmax(axis=0)[new]
            # Of each mask the share, so that large images do not count more than small ones.
            pixels += (batch / batch.sum(axis=1, keepdims=True)).sum(axis=0)
            start += len(batch)
    return first, pixels


def _path(some: Records, position: int) -> str:
    parts = some.read(tf.constant([position], tf.int64))
    found = some.select(("file",))(*(part[0] for part in parts))
    return os.fsdecode(found["file"].numpy())


def _file(request: Request, some: Records, position: int, *, split: str) -> str:
    if "file" not in request.schema.features:
        return f"the mask of example {position} of the {split} split"
    return shown(_path(some, position))


def _crop(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    padding = max(4, min(x.shape[1], x.shape[2]) // 8)
    moved = random_crop(y[..., None], draws, padding=padding)[..., 0]
    return random_crop(x, draws, padding=padding), moved


def _flip(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return random_flip(x, draws), random_flip(y[..., None], draws)[..., 0]


def _resize(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    rows, columns = resize_positions(draws, x.shape[1], x.shape[2])
    nearest = gather(y, tf.cast(tf.round(rows), tf.int32), axis=1, batch_dims=1)
    nearest = gather(nearest, tf.cast(tf.round(columns), tf.int32), axis=2, batch_dims=1)
    return random_resize(x, draws), nearest


AUGMENT = {
    "crop": Transformation("crop", 2, _crop),
    "flip": Transformation("flip", 1, _flip),
    "resize": Transformation("resize", 2, _resize),
}


class MaskPredictor(ImagePredictor):
    """Writes a mask and an overlay for each image, in the image's own size."""

    writes_files = True

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        self._values = np.asarray(spec.fitted["values"], np.uint8)

    def raw(self, item: Any) -> np.ndarray:
        """The image as it is, uint8 (height, width, 3)."""
        return read_image(item, channels=3)

    def written(
        self, items: Sequence[Any], raw: Sequence[np.ndarray], outputs: Any
    ) -> Iterator[Sequence[Written]]:
        """See `Predictor.written`."""
        for item, image, logits in zip(items, raw, outputs, strict=True):
            classes = np.asarray(logits).argmax(axis=-1).astype(np.uint8)
            size = image.shape[1], image.shape[0]
            grown = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
            name = self.name_of(str(item))
            yield [
                Written(f"{name}.mask.png", _png(self._values[grown])),
                Written(f"{name}.overlay.png", _png(overlay(image[None], grown[None])[0])),
            ]

    def rows(self, items: Sequence[Any], outputs: Any) -> Iterator[Mapping[str, Any]]:
        """See `Predictor.rows`: the files, and the share of each class among the pixels."""
        names = self.spec.class_names
        assert self.folder is not None
        for item, logits in zip(items, outputs, strict=True):
            counts = np.bincount(np.asarray(logits).argmax(axis=-1).ravel(), minlength=len(names))
            shares = (counts / counts.sum()).tolist()
            name = self.name_of(str(item))
            yield {
                "path": str(item),
                "mask": str(self.folder / f"{name}.mask.png"),
                "overlay": str(self.folder / f"{name}.overlay.png"),
                "shares": dict(zip(names, shares, strict=True)),
            }


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _dice(outputs: Mapping[str, np.ndarray], y: Any) -> np.ndarray:
    """(n,): of each mask the mean of Dice over its classes, void pixels left out.

    Not the share of the pixels that are right, which a file that finds no rare class hardly misses.
    """
    found, scores = likeliest(outputs), np.zeros(len(y))
    for i, (mask, own) in enumerate(zip(np.asarray(y), found, strict=True)):
        mask, own = mask[mask != VOID], own[mask != VOID]
        each = [
            2
            * ((mask == label) & (own == label)).sum()
            / ((mask == label).sum() + (own == label).sum())
            for label in np.unique(mask)
        ]
        scores[i] = np.mean(each) if each else 1.0
    return scores


def _serve(spec: DataSpec, kind: str) -> Serving:
    shape = spec.image_shape
    assert shape is not None
    return Serving(
        inputs={"pixels": spec.x},
        model=lambda model: inference_model(model, image_shape=shape),
        reference=image_reference,
        outputs=(PROBABILITIES,),
        measure="dice",
        score=_dice,
        decide=likeliest,
        unit="a probability",
        preprocessing=image_preprocessing(shape) | {"mask_values": list(spec.fitted["values"])},
    )


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    few = num_examples < 1000
    return {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "batch_size": 8 if few else 16,
        "epochs": 60 if few else 20,
        "augment": "crop,flip",
    }


def _loss(spec: DataSpec, settings: Any) -> DiceCrossentropy:
    # Runs of before had no shares.
    shares = spec.fitted.get("shares")
    return DiceCrossentropy(spec.num_classes, class_weights(shares) if shares else None)


TASK = Task(
    name="segmentation",
    read=read,
    models={"unet": "tfgpu.models.unet:unet"},
    loss=_loss,
    metrics=pixel_metrics,
    objective="mean_iou",
    maximize=True,
    unit="images",
    choose=choose,
    augment=AUGMENT,
    outputs=lambda spec: (*spec.y.shape.as_list(), spec.num_classes),
    recipe=_recipe,
    settings=frozenset({"image_size"}),
    report=MaskReport,
    predict=MaskPredictor,
    serve=_serve,
)
