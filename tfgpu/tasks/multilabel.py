"""Several labels an image: an image -> for each label whether it has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.data import augmentations, records
from tfgpu.data.examples import Examples
from tfgpu.data.records import Feature, Records, Schema
from tfgpu.errors import DataError, RequestError, did_you_mean
from tfgpu.models.builders import CLASSIFIERS
from tfgpu.models.multilabel_metrics import MeanAveragePrecision
from tfgpu.tasks.parts.image_serving import INPUT, image_preprocessing
from tfgpu.tasks.parts.label_report import LabelReport, sigmoid, thresholds_of
from tfgpu.tasks.parts.predictor import ImagePredictor, csv_row
from tfgpu.tasks.parts.serving import PROBABILITIES, Serving
from tfgpu.tasks.parts.spaces import of_lenet
from tfgpu.tasks.task import DataSpec, Reading, Request, Task

_NAMED = 5  # Labels that a message names.


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The image, and a list of labels; or the image alone, beside columns of 0 and 1."""
    images, lists = schema.of_kind("image"), schema.of_kind("classes")
    roles = dict(given)
    if schema.supervised is not None and schema.supervised[0] in images:
        roles.setdefault("x", schema.supervised[0])
    if len(images) == 1:
        roles.setdefault("x", images[0])
    if len(lists) == 1:
        roles.setdefault("y", lists[0])
    several = len(_flags(schema)) > 1 and "y" not in roles
    if roles.keys() - {"x", "y"} or roles.get("x") not in images:
        raise _refusal(schema)
    if not several and roles.get("y") not in lists:
        raise _refusal(schema)
    return {role: roles[role] for role in ("x", "y") if role in roles}


def _refusal(schema: Schema) -> RequestError:
    return RequestError(
        f"{schema.requested!r} is not a set of images with several labels: it needs an image, and "
        f"a list of labels or columns of 0 and 1, and has {schema.described}; name them with "
        "--features=x=NAME,y=NAME"
    )


def _is_flag(feature: Feature) -> bool:
    """Whether a column holds 0 and 1, or False and True."""
    if feature.kind not in ("number", "class") or feature.shape != ():
        return False
    return bool(feature.class_names) and (
        set(feature.class_names) <= {"0", "1"}
        or {name.lower() for name in feature.class_names} <= {"false", "true"}
    )


def _flags(schema: Schema) -> list[str]:
    return [name for name, feature in schema.features.items() if _is_flag(feature)]


def _labels(request: Request) -> tuple[str, ...]:
    """The columns of 0 and 1 that are learnt.

    Raises:
        RequestError: One of `--task_options=labels` is none.
    """
    schema = request.schema
    named = tuple(filter(None, request.options["labels"].split("+")))
    for name in named:
        if name not in schema.features:
            raise RequestError(
                f"--task_options=labels={name}: {schema.requested!r} has no column {name!r}"
                f"{did_you_mean(name, schema.features)}; it has {schema.described}"
            )
        if not _is_flag(schema.features[name]):
            raise RequestError(
                f"--task_options=labels={name}: {name} is {schema.features[name].described}, and "
                "a label is a column of 0 and 1"
            )
    return named or tuple(_flags(schema))


def read(request: Request) -> Reading:
    """uint8 images (height, width, channels) and float32 labels (labels,), each 0 or 1.

    Raises:
        RequestError: An option is wrong, or images differ in size.
        DataError: A label that a finished run has is not there.
    """
    schema, features = request.schema, request.schema.features
    x, y = request.roles["x"], request.roles.get("y")
    shape = records.image_shape(features[x], request.image_size, requested=schema.requested)
    fitted = dict(request.fitted) if request.fitted is not None else {}
    columns: tuple[str, ...] = ()
    if y is not None:
        if request.options["labels"]:
            raise RequestError(
                f"--task_options=labels={request.options['labels']} names columns of 0 and 1, but "
                f"the labels of {schema.requested!r} are the list {y!r}; leave it out"
            )
        names = features[y].class_names
    else:
        columns = tuple(fitted.get("labels", ())) or _labels(request)
        names = columns
        missing = [name for name in columns if name not in features or not _is_flag(features[name])]
        if missing:
            raise DataError(
                f"{schema.requested!r} has no column of 0 and 1 called {missing[0]!r}, which the "
                "model was trained on"
            )
    if not names:
        raise DataError(f"{schema.requested!r} has not one label")
    own = list(fitted.get("labels", names))
    if y is not None and own != list(names):
        unknown = [name for name in names if name not in own]
        if unknown:
            raise DataError(
                f"{schema.requested!r} has labels that the model does not know: "
                f"{', '.join(unknown[:_NAMED])}"
            )
    places = tf.constant([own.index(name) for name in names] if y is not None else [], tf.int32)

    def decode_y(found: dict[str, tf.Tensor]) -> tf.Tensor:
        if y is None:
            flags = [_as_flag(found[name], features[name]) for name in columns]
            return tf.stack(flags)
        positions = tf.cast(found[y], tf.int32)
        several = tf.one_hot(tf.gather(places, positions), len(own))
        return tf.ensure_shape(tf.minimum(tf.reduce_sum(several, axis=0), 1.0), [len(own)])

    def decode(found: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return records.image(found[x], shape), decode_y(found)

    targets = columns or (y or "",)

    def examples(split: str, some: Records) -> Examples:
        return some.examples((x, *targets), decode, y_names=targets, decode_y=decode_y)

    notes: list[str] = []
    if request.fitted is None:
        fitted = {"labels": own}
        if columns and not request.options["labels"]:
            notes = _no_labels(schema, x)
        # In memory, that costs nothing; elsewhere a pass over the data.
        if request.train.select_batch is not None:
            notes += _notes(examples("train", request.train).load_y(), own)
    spec = DataSpec(
        x=tf.TensorSpec(shape, tf.uint8),
        y=tf.TensorSpec((len(own),), tf.float32),
        class_names=tuple(own),
        fitted=fitted,
    )
    return Reading(spec=spec, examples=examples, notes=tuple(notes))


def _as_flag(value: tf.Tensor, feature: Feature) -> tf.Tensor:
    """float32: a number 0 or 1, or the position of its name, which may be the only one."""
    if feature.kind == "class":
        known = [name.lower() in ("1", "true") for name in feature.class_names]
        return tf.gather(tf.constant(known, tf.float32), value)
    return tf.cast(value, tf.float32)


def _no_labels(schema: Schema, x: str) -> list[str]:
    """A line about the columns that are left out: one cell of 2 makes a label one of them."""
    others = [
        f"{name} ({feature.described})"
        for name, feature in schema.features.items()
        if name != x and not _is_flag(feature)
    ]
    if not others:
        return []
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return [f"left out, as labels are columns of 0 and 1: {', '.join(others[:_NAMED])}{more}"]


def _notes(y: np.ndarray, names: Sequence[str]) -> list[str]:
    positives = y.sum(axis=0)
    notes = [
        f"{len(names)} labels, {y.sum(axis=1).mean():.2f} of them an image; "
        f"{int((y.sum(axis=1) == 0).sum()):,} of {len(y):,} training images have none"
    ]
    for count, what in ((0, "no training image"), (len(y), "every training image")):
        same = [name for name, found in zip(names, positives, strict=True) if found == count]
        if same:
            shown = ", ".join(same[:_NAMED])
            more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
            notes.append(
                f"{shown}{more}: {what} has the label, so nothing that tells it apart is learnt"
            )
    return notes


def calibrate(spec: DataSpec, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The threshold of best F1 on validation, of each label that has a positive there."""
    return {"thresholds": metrics["map"].thresholds()}


class LabelPredictor(ImagePredictor):
    """Every label of an image, with its probability and whether it is above its threshold."""

    def header(self) -> Sequence[str]:
        """See `Predictor.header`."""
        names = self.spec.class_names
        return ["path", "labels", *names, *(f"{name} above" for name in names)]

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """See `Predictor.lines`."""
        names, thresholds = self.spec.class_names, thresholds_of(self.spec)
        paths = list(map(str, items))
        wide = max(map(len, paths))
        for path, chances in zip(paths, sigmoid(outputs), strict=True):
            above = chances >= thresholds
            has = [name for name, is_above in zip(names, above, strict=True) if is_above]
            if self.settings.format == "table":
                order = np.argsort(-chances, kind="stable")
                shown = [i for i in order if above[i]]
                shown += [i for i in order if not above[i]][
                    : max(0, self.settings.top_k - len(has))
                ]
                cells = (f"{names[i]}{'*' if above[i] else ''} {chances[i]:.4f}" for i in shown)
                yield f"{path:<{wide}}  {'  '.join(cells)}"
            elif self.settings.format == "csv":
                yield csv_row([path, "|".join(has), *chances.tolist(), *above.astype(int).tolist()])
            else:
                every = {
                    name: {"probability": chance, "threshold": threshold, "above": is_above}
                    for name, chance, threshold, is_above in zip(
                        names, chances.tolist(), thresholds.tolist(), above.tolist(), strict=True
                    )
                }
                yield json.dumps({"path": path, "labels": has, "all": every})


def serve(spec: DataSpec, kind: str) -> Serving:
    """uint8 pixels to a probability for each label, compared by the share of labels that are right.

    Args:
        spec: The `DataSpec`.
        kind: The format; the same for all.
    """
    shape = spec.image_shape
    assert shape is not None
    thresholds = thresholds_of(spec)

    def model(trained: keras.Model) -> keras.Model:
        pixels = keras.Input(shape, dtype="uint8", name=INPUT)
        logits = trained(keras.ops.cast(pixels, "float32"), training=False)
        named = keras.layers.Activation("sigmoid", dtype="float32", name=PROBABILITIES)(logits)
        return keras.Model(pixels, named)

    def reference(trained: keras.Model) -> Any:
        def call(images: tf.Tensor, training: bool = False) -> Mapping[str, tf.Tensor]:
            logits = trained(tf.cast(images, tf.float32), training=training)
            return {PROBABILITIES: tf.nn.sigmoid(tf.cast(logits, tf.float32))}

        return call

    def decide(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return outputs[PROBABILITIES] >= thresholds

    def right(outputs: Mapping[str, np.ndarray], y: Any) -> np.ndarray:
        return (decide(outputs) == (np.asarray(y) > 0.5)).mean(axis=1)

    above = dict(zip(spec.class_names, thresholds.tolist(), strict=True))
    return Serving(
        inputs={INPUT: spec.x},
        model=model,
        reference=reference,
        outputs=(PROBABILITIES,),
        measure="label_accuracy",
        score=right,
        decide=decide,
        unit="a probability",
        files={"thresholds.json": json.dumps(above, ensure_ascii=False, indent=1) + "\n"},
        preprocessing=image_preprocessing(shape)
        | {"labels": "those whose probability is at least that of thresholds.json"},
    )


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    # The loss is a mean over the labels: gradients shrink with their number, which Adam's steps do
    # not. Of ten labels on collages of digits, gradient descent reached 0.54 where this had 0.88.
    return {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01}


TASK = Task(
    name="multilabel",
    read=read,
    models=CLASSIFIERS,
    loss=lambda spec, settings: keras.losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=settings["label_smoothing"]
    ),
    metrics=lambda spec: [MeanAveragePrecision(spec.num_classes)],
    objective="map",
    maximize=True,
    unit="images",
    choose=choose,
    # Those that mix images mix classes too, of which an image has one there.
    augment={name: each for name, each in augmentations.of_images().items() if not each.mixes},
    outputs=lambda spec: (spec.num_classes,),
    recipe=_recipe,
    settings=frozenset({"image_size", "label_smoothing", "target"}),
    options={"labels": ""},
    report=LabelReport,
    predict=LabelPredictor,
    serve=serve,
    space=of_lenet,
    calibrate=calibrate,
)
