"""What is to be learnt from data: `Task`, one value of functions that every command works with.

A task says how features become x and y, how both are augmented, which model and loss learn y from
x, how a model is measured, and what its outputs mean to a user. The commands know of no task: what
`tfgpu train`, `evaluate`, `predict`, `export`, `tune` and `bench` do with images and labels they do
with every task, with the same engine, resume, input modes and files.

To add one, write a module with a `Task` in it:

- for yourself, anywhere: `--task=package.module:NAME`;
- in tfgpu, as `tfgpu/tasks/NAME.py` (or a package of that name), the task in it called `TASK`. The
  file's being there is all: `--task=NAME` finds it, and data that fit it alone are recognised. A
  new kind of storage is a reader, `tfgpu/data/PREFIX_source.py` for `--dataset=PREFIX:REST`.

What is needed at the least is `name`, `read`, `models`, `loss` and `metrics`. `tfgpu.tasks.parts`
has pieces that tasks share: reports, predictors, serving signatures. Import what is large or
optional inside of functions: every task's module is imported when data are to be recognised.

Rules that make the promises of the engine hold for a task:

- `loss` gives a value for each example, so that partial batches and replicas add up exactly. What
  depends on other examples of a batch (negatives within it) does not.
- A default model has no layer with statistics over the batch: GroupNormalization or
  LayerNormalization, so that N replicas are one.
- Metrics add up: their variables are sums over examples, which replicas and splits sum.
- Every random number of `augment` comes from `draws`.
- What is fitted sees `Request.train` alone, is put into `DataSpec.fitted`, and is taken from
  `Request.fitted` where that is given. It lies in the run directory (`fitted.json`) and in the
  model file, and a run is not continued with another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfgpu.data.augment import Transformation
from tfgpu.data.examples import Examples
from tfgpu.data.records import Records, Schema, Source
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.tasks.parts.predictor import ImagePredictor, Predictor
from tfgpu.tasks.parts.report import Report
from tfgpu.tasks.parts.serving import Serving, plain_serving
from tfgpu.tasks.parts.spaces import of_adamw

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model, a loss and a report have to know of the data. JSON holds all of it.

    Attributes:
        x: `tf.TensorSpec` of one example, without the batch, or a dict of them.
        y: The same.
        class_names: In the order of the labels; () where there are no classes.
        fitted: What was fitted on the training split, as JSON holds it: a vocabulary, tables of
            ids, means. {} where nothing is.
    """

    x: Any
    y: Any
    class_names: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) where x is a uint8 image, else None."""
        if (
            isinstance(self.x, tf.TensorSpec)
            and self.x.dtype == tf.uint8
            and self.x.shape.rank == 3
        ):
            height, width, channels = self.x.shape.as_list()
            return height, width, channels
        return None

    @property
    def fitted_digest(self) -> str:
        """SHA-256 of what was fitted, in hexadecimal, cut short."""
        text = json.dumps(self.fitted, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """What `environment.json` holds of it: all but `fitted`, which has a file of its own."""
        described = {"x": _plain(self.x), "y": _plain(self.y)}
        if self.image_shape is not None:
            described["image_shape"] = list(self.image_shape)
        return described | {"class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, described: Mapping[str, Any], fitted: Mapping[str, Any]) -> DataSpec:
        """Reads back what `to_json` returned, of this version or of one that knew images alone.

        Raises:
            KeyError, TypeError, ValueError: It is not what `to_json` returns.
        """
        names = tuple(str(name) for name in described["class_names"])
        if "x" in described:
            x, y = _spec(described["x"]), _spec(described["y"])
        else:
            height, width, channels = (int(side) for side in described["image_shape"])
            x, y = tf.TensorSpec((height, width, channels), tf.uint8), tf.TensorSpec((), tf.int32)
        return cls(x=x, y=y, class_names=names, fitted=fitted)


def _plain(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {name: _plain(part) for name, part in spec.items()}
    return {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}


def _spec(described: Mapping[str, Any]) -> Any:
    if isinstance(described.get("dtype"), str):
        return tf.TensorSpec([int(side) for side in described["shape"]], described["dtype"])
    return {name: _spec(part) for name, part in described.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What `Task.read` is asked for.

    Attributes:
        schema: The features of the data set.
        roles: The features that `Task.choose` has chosen, by role: {"x": "image", "y": "label"}.
        train: The training split, without what is held back for validation and test.
        options: `image_size`, `target`, `tokens` and the task's own `options`, by name.
        fitted: What the reading of a finished run fitted, to be used as it is; None: fit now.
        seed: Of the run.
    """

    schema: Schema
    roles: Mapping[str, str]
    train: Records
    options: Mapping[str, Any]
    fitted: Mapping[str, Any] | None
    seed: int

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that images are to be brought to; None for their own."""
        size: tuple[int, int] | None = self.options.get("image_size")
        return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What `Task.read` returns.

    Attributes:
        spec: Of the data.
        examples: (name of the split, its records) -> its examples. The name is "train",
            "validation" or "test".
        notes: Lines for the user: what was decided, what the data have that is unusual.
        task: The same task as it is for these data, where its default model or its objective
            depends on them; None: as it is.
    """

    spec: DataSpec
    examples: Callable[[str, Records], Examples]
    notes: tuple[str, ...] = ()
    task: Task | None = None


Splits = tuple[Records, Records | None, Records, str]
"""Training, validation (or None) and test, and which split the last one is."""


def choose_xy(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The features that the user or the set itself names for x and y: for a task of one's own.

    Raises:
        RequestError: Neither does.
    """
    supervised = dict(zip(("x", "y"), schema.supervised or (), strict=False))
    roles = supervised | dict(given)
    if not {"x", "y"} <= roles.keys():
        raise RequestError(
            f"{schema.requested!r} has {schema.described}, and does not say which of them are x "
            "and y: name them with --features=x=NAME,y=NAME"
        )
    return roles


def check_names(schema: Schema, given: Mapping[str, str]) -> None:
    """Refuses roles of `--features` whose feature is not there.

    Raises:
        RequestError: Names the feature.
    """
    for role, name in given.items():
        if name not in schema.features:
            raise RequestError(
                f"--features={role}={name}: {schema.requested!r} has no feature {name!r}"
                f"{did_you_mean(name, schema.features)}; it has {schema.described}"
            )


def _nothing(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    return {}


def _image_arguments(spec: DataSpec) -> Mapping[str, Any]:
    arguments: dict[str, Any] = {}
    if spec.image_shape is not None:
        arguments["image_shape"] = spec.image_shape
    if spec.class_names:
        arguments["num_classes"] = spec.num_classes
    return arguments or {"spec": spec}


def _predictor(spec: DataSpec, settings: Any) -> Predictor:
    return ImagePredictor(spec, settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learnt, as functions; see the module for how to add one.

    Attributes:
        name: As in `--task`.
        read: What is asked for -> how the examples of a split are made, and their `DataSpec`.
        models: Builders by name, as in `--model`; the first is the default. A builder is a
            function, or "package.module:function". It takes what `arguments` gives by keyword, and
            `width` and `depth` where it has use for them, and returns a `tfgpu.Model`.
        loss: (spec, settings of the run) -> a Keras loss, a value for each example.
        metrics: spec -> Keras metrics, or their names; the first is what a search compares.
        objective: The name of the first metric; "loss" where there is none.
        maximize: Whether more of it is better.
        unit: What an example is called, in the plural, in messages.
        choose: (schema, roles that the user names) -> roles of features. Raises a `RequestError`
            that says what is missing where the data do not fit: the task is inferred for data that
            fit no other.
        fixed: What was fitted -> roles of features that other data must have under the same name,
            such as the target of a table, where another column that fits would be another thing.
        infer: Whether it may be inferred.
        open: The value of `--dataset` -> a `Source`, for a task that reads data in its own way.
        split: (source, roles, validation fraction, seed, options of the task) -> `Splits`, where
            examples may not be split at random; None does that.
        augment: What `--augment` may name.
        arguments: spec -> what a builder is called with, by name.
        outputs: spec -> the shape of the model's output without the batch, or a dict of shapes;
            None checks nothing.
        recipe: (spec, training examples) -> defaults for settings that the user leaves open, such
            as {"optimizer": "adamw", "learning_rate": 1e-3, "epochs": 20}; under "of_model", those
            of models by name.
        settings: Which of `label_smoothing`, `class_weight`, `image_size`, `target` and `tokens` it
            heeds; the others are refused.
        options: What `--task_options` may set, with the defaults. Their types are kept.
        report: spec -> what `evaluate` and TensorBoard measure and show.
        predict: (spec, settings of the prediction) -> how `predict` reads files and shows outputs.
        serve: (spec, format) -> signature and postprocessing of an exported file, and by which
            measure the gate compares it.
        counts_identical: Whether inputs that are in two splits are counted and said. Of no use
            where x is not all there is of an example, such as a user.
        announce: (spec, settings of the run) -> lines that are said before the model is built.
        space: KerasTuner's hyperparameters -> settings, the default of `tune --space`.
        calibrate: (spec, the task's metrics by name, as they stand after the validation split) ->
            what is chosen on it once training has ended, such as thresholds. It is added to what
            was fitted, in the run directory and in the model file. Not called without validation.
    """

    name: str
    read: Callable[[Request], Reading]
    models: Mapping[str, str | Callable[..., keras.Model]]
    loss: Callable[[DataSpec, Mapping[str, Any]], Any]
    metrics: Callable[[DataSpec], Sequence[Any]]
    objective: str = "loss"
    maximize: bool = False
    unit: str = "examples"
    choose: Callable[[Schema, Mapping[str, str]], Mapping[str, str]] = choose_xy
    fixed: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda fitted: {}
    infer: bool = True
    open: Callable[[str], Source] | None = None
    split: Callable[[Source, Mapping[str, str], float, int, Mapping[str, Any]], Splits] | None = (
        None
    )
    augment: Mapping[str, Transformation] = dataclasses.field(default_factory=dict)
    arguments: Callable[[DataSpec], Mapping[str, Any]] = _image_arguments
    outputs: Callable[[DataSpec], Any] = lambda spec: None
    recipe: Callable[[DataSpec, int], Mapping[str, Any]] = _nothing
    settings: frozenset[str] = frozenset({"image_size"})
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    report: Callable[[DataSpec], Report] = Report
    predict: Callable[[DataSpec, Any], Predictor] = _predictor
    serve: Callable[[DataSpec, str], Serving] = plain_serving
    counts_identical: bool = True
    announce: Callable[[DataSpec, Mapping[str, Any]], Sequence[str]] = lambda spec, settings: ()
    space: Callable[[Any], dict[str, Any]] = of_adamw
    calibrate: Callable[[DataSpec, Mapping[str, Any]], Mapping[str, Any]] | None = None
