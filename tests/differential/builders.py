"""Makes of a case its model and what it is compiled with.

Everything here is made twice and more: for stock Keras and for tfgpu, by the same code, from the
same seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from .cases import Case

L = keras.layers
TOKENS, TIME, SIDE, CLASSES, VALUES = 12, 5, 6, 4, 2
ROW_SHAPES = {
    "vector": (6,),
    "image": (SIDE, SIDE, 2),
    "sequence": (TIME, 3),
    "tokens": (TIME,),
}


class Kind(NamedTuple):
    """The classes that are compared: Keras' own or tfgpu's."""

    Model: type
    Sequential: type


STOCK = Kind(keras.Model, keras.Sequential)


def tfgpu_kind() -> Kind:
    """tfgpu's classes, imported when they are needed: stock against stock runs without."""
    import tfgpu

    return Kind(tfgpu.Model, tfgpu.Sequential)


# ---- networks ------------------------------------------------------------------------------


class Penalty(L.Layer):
    """Adds a loss that is a mean over the rows."""

    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


class Activity(L.Layer):
    """Updates a metric in `call`, with a value a row or with their mean."""

    def __init__(self, of_rows: bool, **kwargs):
        super().__init__(**kwargs)
        self.of_rows = of_rows
        self.seen = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.seen.update_state(ops.mean(ops.abs(x), axis=-1 if self.of_rows else None))
        return x


class Counter(L.Layer):
    """Counts the rows that it was trained on."""

    def build(self, input_shape):
        self.rows = self.add_weight(
            shape=(), initializer="zeros", trainable=False, aggregation="sum", name="rows"
        )

    def call(self, x, training=False):
        if training:
            self.rows.assign_add(ops.cast(ops.shape(x)[0], "float32"))
        return x


def _normalization(case: Case) -> list[L.Layer]:
    """The case's normalisation, as a list of no or one layer."""
    makers = {
        "none": lambda: [],
        "batch": lambda: [L.BatchNormalization(momentum=0.8)],
        "synchronized": lambda: [L.BatchNormalization(momentum=0.8, synchronized=True)],
        "layer": lambda: [L.LayerNormalization()],
        "group": lambda: [L.GroupNormalization(groups=2)],
        "unit": lambda: [L.UnitNormalization()],
    }
    return makers[case.normalization]()


def _hidden(case: Case, layer: Callable[..., L.Layer], *args: Any, **options: Any) -> list[L.Layer]:
    """A layer with weights, then the case's normalisation, activation and dropout."""
    # A bias before batch statistics has no gradient but rounding, which Adam and others blow up.
    options.setdefault("use_bias", case.normalization not in ("batch", "synchronized"))
    layers = [layer(*args, **options), *_normalization(case), L.Activation(case.activation)]
    if case.dropout:
        layers.append(L.Dropout(case.dropout, seed=case.index + 1))
    return layers


def _after(case: Case) -> list[L.Layer]:
    """What follows a layer with an activation of its own."""
    dropout = [L.Dropout(case.dropout, seed=case.index + 1)] if case.dropout else []
    return _normalization(case) + dropout


def _apply(layers: list[L.Layer], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _head(case: Case, task: str | None = None, name: str | None = None) -> L.Layer:
    """The last layer, which fits the case's targets."""
    task = task or case.task
    units, activation = {
        "regression": (VALUES, None),
        "binary": (1, "sigmoid"),
        "classes": (CLASSES, "softmax"),
        "one_hot": (CLASSES, "softmax"),
    }[task]
    activation = None if case.from_logits else activation
    if case.outputs == "pixels":
        return L.Conv2D(units, 1, activation=activation, name=name)
    return L.Dense(units, activation=activation, name=name)


def build(case: Case, kind: Kind) -> Any:
    """The case's model, not compiled.

    Args:
        case: The case.
        kind: Classes to build it with.
    """
    if case.network == "sequential":
        return kind.Sequential([keras.Input((6,)), *_hidden(case, L.Dense, 8), _head(case)])
    if case.network == "subclassed":
        return _subclassed(case, kind)
    if case.network == "two_inputs":
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), name="b")}
        x = ops.concatenate([L.Dense(6)(inputs["a"]), L.Dense(4)(inputs["b"])], axis=-1)
        x = _apply([*_normalization(case), L.Activation(case.activation), *_dropouts(case)], x)
        return kind.Model(inputs, _head(case)(x))
    dtype = "int32" if case.inputs == "tokens" else "float32"
    inputs = keras.Input(ROW_SHAPES[case.inputs], dtype=dtype)
    outputs = _outputs(case, inputs)
    model_class = kind.Model
    if case.network == "compute_loss":
        model_class = _with_compute_loss(kind.Model)
    return model_class(inputs, outputs)


def _dropouts(case: Case) -> list[L.Layer]:
    return [L.Dropout(case.dropout, seed=case.index + 1)] if case.dropout else []


def _subclassed(case: Case, kind: Kind) -> Any:
    class Subclassed(kind.Model):
        def __init__(self):
            super().__init__()
            self.body = _hidden(case, L.Dense, 8)
            self.head = _head(case)

        def call(self, x, training=False):
            for layer in self.body:
                x = layer(x, training=training) if isinstance(layer, L.Dropout) else layer(x)
            return self.head(x)

    return Subclassed()


def _with_compute_loss(model_class: type) -> type:
    class WithComputeLoss(model_class):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            return loss + 0.1 * ops.mean(ops.square(y_pred))

    return WithComputeLoss


def _outputs(case: Case, inputs: Any) -> Any:
    """The outputs of a functional network with one input."""
    dense = {
        "activity_regularizer": {"activity_regularizer": keras.regularizers.L2(0.1)},
        "kernel_regularizer": {"kernel_regularizer": keras.regularizers.L2(0.05)},
        "constraint": {"kernel_constraint": keras.constraints.MaxNorm(1.0)},
    }
    network = case.network
    if network in ("two_outputs_dict", "two_outputs_list"):
        x = _apply(_hidden(case, L.Dense, 8), inputs)
        heads = {"p": _head(case, name="p")(x), "q": _head(case, "classes", name="q")(x)}
        return heads if case.outputs == "dict" else list(heads.values())
    if network == "conv":
        x = _apply(_hidden(case, L.Conv2D, 4, 3), inputs)
        x = L.Flatten()(L.MaxPooling2D()(x))
    elif network == "pixels":
        x = _apply(_hidden(case, L.Conv2D, 4, 3, padding="same"), inputs)
    elif network in ("lstm", "gru", "tagger"):
        layer = L.GRU if network == "gru" else L.LSTM
        x = layer(6, return_sequences=network == "tagger")(inputs)
        x = _apply(_after(case), x)
    elif network == "time_distributed":
        x = L.TimeDistributed(L.Dense(8))(inputs)
        x = _apply([*_normalization(case), L.Activation(case.activation), *_dropouts(case)], x)
    elif network == "embedding":
        x = L.GlobalAveragePooling1D()(L.Embedding(TOKENS, 4)(inputs))
        x = _apply(_hidden(case, L.Dense, 8), x)
    elif network in ("masked_lstm", "masked_tagger"):
        x = L.Embedding(TOKENS, 4, mask_zero=True)(inputs)
        x = L.LSTM(6, return_sequences=network == "masked_tagger")(x)
        x = _apply(_after(case), x)
    elif network == "residual":
        x = L.Dense(6)(inputs)
        x = _apply(_hidden(case, L.Dense, 6), x) + x
    else:
        options = {"trainable": False} if network == "frozen" else dense.get(network, {})
        x = L.Dense(7, activation="tanh")(inputs) if network == "frozen" else inputs
        x = _apply(_hidden(case, L.Dense, 8, **options), x)
    if network == "add_loss":
        x = Penalty()(x)
    elif network in ("metric_of_rows", "metric_of_batches"):
        x = Activity(network == "metric_of_rows", name="activity_layer")(x)
    elif network == "counter":
        x = Counter()(x)
    return _head(case)(x)


# ---- what it is compiled with --------------------------------------------------------------


def function_of_rows(y_true, y_pred):
    """A loss function that gives a value a row (a time step, a pixel)."""
    return ops.mean(ops.square(y_true - y_pred) + 0.1 * ops.abs(y_pred), axis=-1)


def function_of_batch(y_true, y_pred):
    """A loss function that gives one value a batch: the mean over it."""
    return ops.mean(ops.square(y_true - y_pred))


class OwnLoss(keras.losses.Loss):
    """A loss class of the user's."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred) * (1 + ops.square(y_true)), axis=-1)


def near(y_true, y_pred):
    """A metric function: whether the prediction is close, for each value."""
    return ops.mean(ops.cast(ops.abs(y_true - y_pred) < 0.5, "float32"), axis=-1)


def _loss(name: str, case: Case) -> Any:
    functions = {"function_of_rows": function_of_rows, "function_of_batch": function_of_batch}
    if name in functions:
        return functions[name]
    classes = {
        "mean_squared_error": keras.losses.MeanSquaredError,
        "mean_absolute_error": keras.losses.MeanAbsoluteError,
        "huber": keras.losses.Huber,
        "log_cosh": keras.losses.LogCosh,
        "cosine_similarity": keras.losses.CosineSimilarity,
        "own_class": OwnLoss,
        "binary_crossentropy": keras.losses.BinaryCrossentropy,
        "binary_focal_crossentropy": keras.losses.BinaryFocalCrossentropy,
        "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
        "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
        "categorical_focal_crossentropy": keras.losses.CategoricalFocalCrossentropy,
    }
    options: dict[str, Any] = {"reduction": case.reduction or "sum_over_batch_size"}
    if "crossentropy" in name:
        options["from_logits"] = case.from_logits
    return classes[name](**options)


def _metric(name: str, case: Case, prefix: str = "") -> Any:
    logits = {"from_logits": case.from_logits}
    threshold = 0.0 if case.from_logits else 0.5
    metrics = {
        "auc": lambda: keras.metrics.AUC(num_thresholds=20, name=prefix + "auc", **logits),
        "precision": lambda: keras.metrics.Precision(threshold, name=prefix + "precision"),
        "recall": lambda: keras.metrics.Recall(threshold, name=prefix + "recall"),
        "r2": lambda: keras.metrics.R2Score(name=prefix + "r2"),
        "near": lambda: near,
        "top_k": lambda: keras.metrics.TopKCategoricalAccuracy(2, name=prefix + "top_k"),
        "sparse_top_k": lambda: keras.metrics.SparseTopKCategoricalAccuracy(
            2, name=prefix + "top_k"
        ),
        "sparse_categorical_crossentropy": lambda: keras.metrics.SparseCategoricalCrossentropy(
            name=prefix + "sce", **logits
        ),
        "categorical_crossentropy": lambda: keras.metrics.CategoricalCrossentropy(
            name=prefix + "ce", **logits
        ),
        "mean_iou": lambda: keras.metrics.MeanIoU(
            CLASSES, sparse_y_pred=False, name=prefix + "iou"
        ),
    }
    return metrics[name]() if name in metrics else name


def _learning_rate(case: Case) -> Any:
    rate = case.learning_rate
    schedules = keras.optimizers.schedules
    makers = {
        "none": lambda: rate,
        "piecewise": lambda: schedules.PiecewiseConstantDecay([2, 6], [rate, rate / 2, rate / 5]),
        "cosine": lambda: schedules.CosineDecay(rate, 15, warmup_steps=0),
        "exponential": lambda: schedules.ExponentialDecay(rate, 3, 0.7),
    }
    return makers[case.schedule]()


def optimizer(case: Case) -> Any:
    """The case's optimizer, perhaps in a LossScaleOptimizer."""
    classes: dict[str, tuple[type, dict[str, Any]]] = {
        "sgd": (keras.optimizers.SGD, {}),
        "momentum": (keras.optimizers.SGD, {"momentum": 0.9}),
        "nesterov": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
        "adam": (keras.optimizers.Adam, {}),
        "adamw": (keras.optimizers.AdamW, {}),
        "amsgrad": (keras.optimizers.Adam, {"amsgrad": True}),
        "nadam": (keras.optimizers.Nadam, {}),
        "rmsprop": (keras.optimizers.RMSprop, {}),
        "centered_rmsprop": (keras.optimizers.RMSprop, {"centered": True, "momentum": 0.5}),
        "adagrad": (keras.optimizers.Adagrad, {}),
        "adadelta": (keras.optimizers.Adadelta, {}),
        "adamax": (keras.optimizers.Adamax, {}),
        "ftrl": (keras.optimizers.Ftrl, {}),
        "adafactor": (keras.optimizers.Adafactor, {}),
        "lion": (keras.optimizers.Lion, {}),
        "lamb": (keras.optimizers.Lamb, {}),
        "muon": (keras.optimizers.Muon, {}),
    }
    made, options = classes[case.optimizer]
    result = made(_learning_rate(case), **{**options, **case.optimizer_options})
    if case.loss_scale:
        # Grows within the run.
        return keras.optimizers.LossScaleOptimizer(
            result, initial_scale=1024.0, dynamic_growth_steps=3
        )
    return result


def compile_arguments(case: Case) -> dict[str, Any]:
    """Arguments of `compile`, but for the optimizer."""
    arguments: dict[str, Any] = {
        "jit_compile": case.jit_compile,
        "run_eagerly": case.run_eagerly,
        "steps_per_execution": case.steps_per_execution,
    }
    loss = _loss(case.loss, case)
    metrics = [_metric(name, case) for name in case.metrics]
    weighted = [_metric(name, case, "weighted_") for name in case.weighted_metrics]
    if case.outputs not in ("dict", "list"):
        return arguments | {"loss": loss, "metrics": metrics, "weighted_metrics": weighted}
    losses = {"p": loss, "q": _loss("sparse_categorical_crossentropy", case)}
    scores = {"p": metrics, "q": ["accuracy"]}
    loss_weights = {"p": 1.0, "q": 0.4}
    if case.outputs == "list":
        arguments |= {"loss": list(losses.values()), "metrics": list(scores.values())}
        loss_weights = list(loss_weights.values())
    else:
        arguments |= {"loss": losses, "metrics": scores}
    if case.loss_weights:
        arguments["loss_weights"] = loss_weights
    return arguments


def freeze(model: Any) -> None:
    """Freezes the first layer that has weights to train."""
    for layer in model.layers:
        if layer.trainable_weights:
            layer.trainable = False
            return
