"""Makes of a case its data, the way of feeding them, and its callbacks.

Everything here is made twice and more: for stock Keras and for tfgpu, by the same code, from the
same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from .builders import CLASSES, ROW_SHAPES, SIDE, TIME, TOKENS, VALUES
from .cases import Case

# ---- data ----------------------------------------------------------------------------------


class Data(NamedTuple):
    """Arrays, or structures of arrays, all with rows first."""

    x: Any
    y: Any
    weights: Any  # None without.

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Data:
        """The same with `function` applied to each array."""
        return Data(
            *(None if part is None else tree.map_structure(function, part) for part in self)
        )


def _targets(rng: np.random.Generator, features: np.ndarray, task: str, axes: int) -> np.ndarray:
    """Targets that depend on `features` (rows, …, values), with noise.

    `axes` is 1 for a target a row; otherwise as many leading axes as have a target each.
    """
    features = features.reshape(*features.shape[:axes], -1)
    units = VALUES if task == "regression" else CLASSES
    teacher = rng.normal(size=(features.shape[-1], units)) / np.sqrt(features.shape[-1])
    scores = features @ teacher
    scores = scores + 0.3 * rng.normal(size=scores.shape)
    if task == "regression":
        return scores.astype("float32")
    if task == "binary":
        return (scores[..., :1] > 0).astype("float32")
    labels = scores.argmax(-1)
    return np.eye(CLASSES, dtype="float32")[labels] if task == "one_hot" else labels.astype("int32")


def data(case: Case, part: str) -> Data:
    """Rows of the case's training data (with its validation split), validation or test data."""
    parts = {
        "train": case.rows + (case.validation_rows if case.validation == "split" else 0),
        "validation": case.validation_rows,
        "test": case.test_rows,
    }
    rows = parts[part]
    # The teacher is the same for all parts.
    teacher = np.random.default_rng([case.seed, case.index, 1])
    rng = np.random.default_rng([case.seed, case.index, 2, list(parts).index(part)])
    if case.inputs == "tokens":
        x: Any = rng.integers(1, TOKENS, (rows, TIME)).astype("int32")
        # Right padding, of which the first step is never part: 0 is masked by some networks.
        x[np.arange(TIME) >= rng.integers(2, TIME + 1, (rows, 1))] = 0
        features = teacher.normal(size=(TOKENS, 3))[x]
    elif case.inputs == "two":
        x = {
            "a": rng.normal(size=(rows, 6)).astype("float32"),
            "b": rng.normal(size=(rows, 3)).astype("float32"),
        }
        features = np.concatenate([x["a"], x["b"]], axis=-1)
    else:
        x = rng.normal(size=(rows, *ROW_SHAPES[case.inputs])).astype("float32")
        features = x
    axes = {"steps": 2, "pixels": 3}.get(case.outputs, 1)
    y: Any = _targets(teacher, features, case.task, axes)
    if case.outputs in ("dict", "list"):
        labels = _targets(teacher, features, "classes", axes)
        y = {"p": y, "q": labels} if case.outputs == "dict" else (y, labels)
    return Data(x, y, _weights(rng, case, rows))


def _weights(rng: np.random.Generator, case: Case, rows: int) -> Any:
    """Sample weights, some of them zero; None where the case has none."""
    if case.weights in ("none", "classes"):
        return None
    shape: tuple[int, ...] = (rows,)
    inner = {"steps": (TIME,), "pixels": (SIDE, SIDE)}.get(case.outputs, ())
    shape += inner if case.weights == "elements" else (1,) * len(inner)
    weights = rng.uniform(0.2, 1.8, shape).astype("float32")
    weights[rng.random(shape) < 0.15] = 0
    if case.outputs == "dict":
        return {"p": weights, "q": weights[::-1].copy()}
    if case.outputs == "list":
        return (weights, weights[::-1].copy())
    return weights


def permuted(case: Case, rows: Data) -> Data:
    """The training rows with those of each batch in another order.

    Sums over a batch then add up in another order, and nothing else changes.
    """
    rng = np.random.default_rng([case.seed, case.index, 3])
    order = np.arange(len(tree.flatten(rows.x)[0]))
    for start in range(0, case.rows, case.batch_size):
        rng.shuffle(order[start : min(start + case.batch_size, case.rows)])
    return rows.map(lambda array: array[order])


# ---- feeding -------------------------------------------------------------------------------


def _packed(rows: Data) -> tuple[Any, ...]:
    return tuple(rows) if rows.weights is not None else tuple(rows[:2])


def batches(rows: Data, batch_size: int) -> Iterator[tuple[Any, ...]]:
    """The batches in order, each (x, y) or (x, y, weights); the last may be partial."""
    count = len(tree.flatten(rows.x)[0])
    for start in range(0, count, batch_size):
        at = slice(start, start + batch_size)
        yield _packed(rows.map(lambda array, at=at: array[at]))


class Batches(keras.utils.PyDataset):
    """The batches as Keras' own kind of sequence."""

    def __init__(self, rows: Data, batch_size: int):
        super().__init__()
        self._batches = list(batches(rows, batch_size))

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


def _endless(rows: Data, batch_size: int) -> Iterator[tuple[Any, ...]]:
    while True:
        yield from batches(rows, batch_size)


def _dataset(rows: Data, batch_size: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(_packed(rows)).batch(batch_size)


def class_weight(case: Case) -> dict[int, float] | None:
    """The case's weights of classes; None without."""
    if case.weights != "classes":
        return None
    return {c: 0.5 + 0.4 * c for c in range(2 if case.task == "binary" else CLASSES)}


def fit_arguments(case: Case, rows: Data) -> dict[str, Any]:
    """Arguments of `fit` that feed `rows` to it, and those of the validation data.

    Args:
        case: The case; its feeding is not `train_on_batch`.
        rows: Training rows.
    """
    size = case.batch_size
    feeds = {
        "dataset": lambda: _dataset(rows, size),
        "unknown": lambda: _dataset(rows, size).filter(lambda *_: True),
        "repeat": lambda: _dataset(rows, size).repeat(),
        "generator": lambda: _endless(rows, size),
        "py_dataset": lambda: Batches(rows, size),
    }
    if case.feeding == "arrays":
        y = list(rows.y) if case.outputs == "list" else rows.y
        weights = list(rows.weights) if isinstance(rows.weights, tuple) else rows.weights
        arguments = {"x": rows.x, "y": y, "sample_weight": weights, "batch_size": size}
    else:
        arguments = {"x": feeds[case.feeding]()}
    arguments |= {
        "epochs": case.epochs,
        "steps_per_epoch": case.steps_per_epoch,
        "class_weight": class_weight(case),
        "shuffle": False,
        "verbose": 0,
    }
    if case.validation == "none":
        return arguments
    arguments["validation_freq"] = case.validation_freq
    if case.validation == "split":
        # Half a row less, so that rounding down gives the rows that are meant.
        share = (case.validation_rows - 0.5) / (case.rows + case.validation_rows)
        return arguments | {"validation_split": share}
    held_out = data(case, "validation")
    if case.validation == "arrays":
        arguments["validation_batch_size"] = case.validation_batch_size
        return arguments | {"validation_data": _packed(held_out)}
    dataset = _dataset(held_out, case.batch_size)
    if case.validation == "unknown":
        dataset = dataset.filter(lambda *_: True)
    return arguments | {"validation_data": dataset}


class Recorder(keras.callbacks.Callback):
    """Records the numbers of the batches that an execution begins and ends with."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(("train begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(("train end", batch))

    def on_test_batch_begin(self, batch, logs=None):
        self.seen.append(("test begin", batch))

    def on_test_batch_end(self, batch, logs=None):
        self.seen.append(("test end", batch))


def callbacks(case: Case) -> list[keras.callbacks.Callback]:
    """The case's callbacks, but for the recorder of batches."""
    monitor = "loss" if case.validation == "none" or case.validation_freq > 1 else "val_loss"
    makers = {
        "none": lambda: [],
        # No loss improves by that much, so the rate falls and training stops.
        "reduce_lr": lambda: [
            keras.callbacks.ReduceLROnPlateau(
                monitor=monitor, factor=0.3, patience=0, min_delta=10.0, min_lr=0.0
            )
        ],
        "lr_scheduler": lambda: [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.6)
        ],
        "early_stopping": lambda: [
            keras.callbacks.EarlyStopping(
                monitor=monitor, patience=1, min_delta=10.0, restore_best_weights=True
            )
        ],
    }
    return makers[case.callback]()
