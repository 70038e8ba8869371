"""Classification of images: an image -> one of several classes."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfgpu.data import augmentations, records
from tfgpu.data.examples import Examples
from tfgpu.data.records import Records, Schema
from tfgpu.errors import RequestError
from tfgpu.models.builders import CLASSIFIERS
from tfgpu.tasks.parts.class_loss import class_loss
from tfgpu.tasks.parts.class_report import ClassReport
from tfgpu.tasks.parts.image_serving import class_serving
from tfgpu.tasks.parts.predictor import ImageClassPredictor
from tfgpu.tasks.parts.spaces import of_lenet
from tfgpu.tasks.task import DataSpec, Reading, Request, Task


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The image and the class: those that the user or the set names, else the only ones."""
    images, labels = schema.of_kind("image"), schema.of_kind("class")
    supervised = schema.supervised
    roles: dict[str, str] = {}
    if supervised is not None:
        if supervised[0] in images and supervised[1] in labels:
            roles = {"x": supervised[0], "y": supervised[1]}
    elif len(images) == 1 and len(labels) == 1:
        roles = {"x": images[0], "y": labels[0]}
    if "x" in given and len(labels) == 1:
        roles.setdefault("y", labels[0])
    if "y" in given and len(images) == 1:
        roles.setdefault("x", images[0])
    roles |= given
    if roles.get("x") not in images or roles.get("y") not in labels:
        raise RequestError(
            f"{schema.requested!r} is not an image-classification set: it needs one Image and one "
            f"ClassLabel as its supervised keys, and has {schema.described}"
        )
    return {"x": roles["x"], "y": roles["y"]}


def read(request: Request) -> Reading:
    """uint8 images (height, width, channels) and int32 labels ()."""
    x, y = request.roles["x"], request.roles["y"]
    features = request.schema.features
    shape = records.image_shape(features[x], request.image_size, requested=request.schema.requested)

    def decode(found: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return records.image(found[x], shape), decode_y(found)

    def decode_y(found: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.cast(found[y], tf.int32)

    def examples(split: str, some: Records) -> Examples:
        return some.examples((x, y), decode, y_names=(y,), decode_y=decode_y)

    spec = DataSpec(
        x=tf.TensorSpec(shape, tf.uint8),
        y=tf.TensorSpec((), tf.int32),
        class_names=features[y].class_names,
    )
    return Reading(spec=spec, examples=examples)


TASK = Task(
    name="classification",
    read=read,
    models=CLASSIFIERS,
    loss=lambda spec, settings: class_loss(spec, settings, augmentations.of_images()),
    metrics=lambda spec: ["accuracy"],
    objective="accuracy",
    maximize=True,
    unit="images",
    choose=choose,
    augment=augmentations.of_images(),
    outputs=lambda spec: (spec.num_classes,),
    settings=frozenset({"image_size", "label_smoothing", "class_weight"}),
    report=ClassReport,
    predict=ImageClassPredictor,
    serve=class_serving,
    space=of_lenet,
)
