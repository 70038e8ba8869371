"""Trains a case with stock Keras and with tfgpu, and compares all that came of it."""

from __future__ import annotations

import dataclasses
import gc
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from . import builders, feeding, rules
from .builders import STOCK, Kind
from .cases import Case

# A quantity is compared relative to its own size, where weights mean how far training moved them.
# float32 in 10 to 20 steps: see `ill_conditioned` for the cases in which that is too narrow.
HISTORY_RTOL, HISTORY_ATOL = 2e-4, 2e-5
MOVEMENT_RTOL, WEIGHT_RTOL, WEIGHT_ATOL = 5e-4, 2e-6, 1e-7
SLOT_RTOL, SLOT_ATOL = 1e-3, 1e-10
PREDICT_RTOL, PREDICT_ATOL = 2e-4, 1e-5
# Rows in another order must change a quantity by less than this share of its tolerance.
CONDITION = 0.25

FAULTS: dict[str, Callable[[Case], Case]] = {
    "learning_rate": lambda case: dataclasses.replace(
        case, learning_rate=1.01 * case.learning_rate
    ),
    "weights": lambda case: dataclasses.replace(case, weights="none"),
    "seed": lambda case: dataclasses.replace(case, seed=case.seed + 1),
    "epochs": lambda case: dataclasses.replace(case, epochs=case.epochs + 1),
}


class Result(NamedTuple):
    """What came of a case: arrays by name, and what the weights were before."""

    values: dict[str, np.ndarray]  # history/…, weights/…, optimizer/…, evaluate/…, predict/…
    initial: dict[str, np.ndarray]  # Of the weights; empty when the first batch makes them.
    batches: list[tuple[str, int]]


class Difference(NamedTuple):
    """A quantity that differs, and how."""

    quantity: str
    text: str


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _optimizer_values(optimizer: Any) -> dict[str, np.ndarray]:
    values = {"iterations": _inner(optimizer).iterations.numpy()}
    for number, variable in enumerate(_inner(optimizer).variables):
        values[f"optimizer/{number} {variable.name}"] = variable.numpy()
    return values


def _weights(model: Any) -> dict[str, np.ndarray]:
    return {f"weights/{number} {v.name}": v.numpy() for number, v in enumerate(model.weights)}


def _loop(model: Any, case: Case, rows: feeding.Data) -> dict[str, list[float]]:
    """`train_on_batch` over all batches, and its logs as a history."""
    history: dict[str, list[float]] = {}
    for _ in range(case.epochs):
        for batch in feeding.batches(rows, case.batch_size):
            logs = model.train_on_batch(
                *batch, class_weight=feeding.class_weight(case), return_dict=True
            )
            for name, value in logs.items():
                history.setdefault(name, []).append(value)
    return history


def run(
    case: Case,
    kind: Kind = STOCK,
    strategy: tf.distribute.Strategy | None = None,
    *,
    permute: bool = False,
) -> Result:
    """Trains, evaluates and predicts.

    Args:
        case: What to train.
        kind: Classes to build the model with.
        strategy: Strategy to train under; the default one without.
        permute: Whether the rows of each batch come in another order.

    Returns:
        All that is compared.
    """
    strategy = strategy or tf.distribute.get_strategy()
    rows = feeding.data(case, "train")
    if permute:
        rows = feeding.permuted(case, rows)
    test = feeding.data(case, "test")
    keras.backend.clear_session()  # Counts layers from the start, for the names of variables.
    keras.utils.set_random_seed(case.seed + case.index)
    values: dict[str, np.ndarray] = {}
    recorder = feeding.Recorder()
    with warnings.catch_warnings():
        # Stock Keras warns of data that ends and of weights that are not there; not compared.
        warnings.simplefilter("ignore")
        with strategy.scope():
            model = builders.build(case, kind)
            optimizer = builders.optimizer(case)
            model.compile(optimizer=optimizer, **builders.compile_arguments(case))
        initial = _weights(model) if model.built else {}
        for number in range(2 if case.second_round else 1):
            if number:
                with strategy.scope():
                    builders.freeze(model)
                    model.compile(optimizer=optimizer, **builders.compile_arguments(case))
            if case.feeding == "train_on_batch":
                history = _loop(model, case, rows)
            else:
                called = feeding.callbacks(case)
                if case.records_batches:
                    called.append(recorder)
                arguments = feeding.fit_arguments(case, rows)
                history = model.fit(**arguments, callbacks=called).history
            prefix = "history/second/" if number else "history/"
            values |= {prefix + name: np.asarray(value) for name, value in history.items()}
        values |= _weights(model) | _optimizer_values(optimizer)
        packed = list(test) if test.weights is not None else list(test[:2])
        if case.outputs == "list":
            packed[1:] = [list(part) for part in packed[1:]]
        logs = model.evaluate(
            *packed[:2],
            sample_weight=packed[2] if len(packed) > 2 else None,
            batch_size=case.test_batch_size,
            verbose=0,
            return_dict=True,
        )
        values |= {f"evaluate/{name}": np.asarray(value) for name, value in logs.items()}
        outputs = model.predict(test.x, batch_size=case.test_batch_size, verbose=0)
        for number, output in enumerate(tree.flatten(outputs)):
            values[f"predict/{number}"] = output
    return Result(values, initial, recorder.seen)


def _tolerance(name: str, expected: np.ndarray, initial: np.ndarray | None) -> np.ndarray | float:
    """How far a value may be off; an array of the same shape, or one number."""
    size = float(np.max(np.abs(expected), initial=0.0))
    group = name.split("/")[0]
    if group in ("history", "evaluate"):
        return HISTORY_ATOL + HISTORY_RTOL * np.abs(expected)
    if group == "weights":
        moved = size if initial is None else float(np.max(np.abs(expected - initial), initial=0.0))
        return WEIGHT_ATOL + WEIGHT_RTOL * size + MOVEMENT_RTOL * moved
    if group == "optimizer":
        return SLOT_ATOL + SLOT_RTOL * size
    if group == "predict":
        return PREDICT_ATOL + PREDICT_RTOL * size
    return 0.0  # Counts.


def _short(values: np.ndarray) -> str:
    text = np.array2string(values.ravel()[:4], precision=7, separator=", ")
    return text if values.size <= 4 else f"{text[:-1]}, …]"


def compare(expected: Result, actual: Result, *, share: float = 1.0) -> list[Difference]:
    """Compares two results.

    Args:
        expected: What is right.
        actual: What is compared with it.
        share: Share of each tolerance that may be used up.

    Returns:
        The quantities that differ by more.
    """
    ours, theirs = actual.values, expected.values
    found = []
    if ours.keys() != theirs.keys():
        missing, extra = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
        found.append(Difference("names", f"missing {missing}, and {extra} more"))
    for name in theirs:
        if name not in ours:
            continue
        one, other = np.asarray(theirs[name], "float64"), np.asarray(ours[name], "float64")
        if one.shape != other.shape:
            found.append(Difference(name, f"expected shape {one.shape}, got {other.shape}"))
            continue
        allowed = share * _tolerance(name, one, expected.initial.get(name))
        apart = np.abs(one - other)
        same = (apart <= allowed) | (np.isnan(one) & np.isnan(other)) | (one == other)
        if not np.all(same):
            worst = np.nanmax(np.where(same, 0, apart / np.maximum(allowed, 1e-30)))
            found.append(
                Difference(
                    name, f"expected {_short(one)}, got {_short(other)} ({worst:.3g} × tolerance)"
                )
            )
    for name in expected.initial.keys() & actual.initial.keys():
        if not np.array_equal(expected.initial[name], actual.initial[name]):
            found.append(Difference("initial " + name, "the models begin with other weights"))
    if expected.batches != actual.batches:
        found.append(Difference("batches", _first_apart(expected.batches, actual.batches)))
    return found


def _first_apart(expected: list[Any], actual: list[Any]) -> str:
    """Where two lists first differ."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b),
        min(len(expected), len(actual)),
    )
    return (
        f"expected {len(expected)} and got {len(actual)}; at {at} "
        f"expected {expected[at : at + 3]}, got {actual[at : at + 3]}"
    )


def ill_conditioned(case: Case, expected: Result) -> bool:
    """Whether stock Keras differs from itself when the rows of each batch are permuted.

    That changes nothing but the order of sums, as replicas do. Random layers would draw for other
    rows, so cases with them count as well conditioned.
    """
    if case.dropout:
        return False
    return bool(compare(expected, run(case, permute=True), share=CONDITION))


class Comparison(NamedTuple):
    """What came of one case on one number of replicas."""

    replicas: int
    verdict: str  # "same", "differs", "invalid", "ill-conditioned", or the name of a rule.
    differences: list[Difference]


def check(
    case: Case,
    strategies: dict[int, tf.distribute.Strategy | None],
    kind: Kind | None,
    *,
    fault: str | None = None,
    always_condition: bool = False,
) -> list[Comparison]:
    """Compares a case with stock Keras on each number of replicas.

    Args:
        case: The case.
        strategies: A strategy for each number of replicas.
        kind: Classes to compare with stock Keras'. None compares stock Keras with itself on one
            device, with the rows permuted where two replicas are asked for.
        fault: Key of `FAULTS`: has the compared model train something else.
        always_condition: Whether to find out of each case whether it is ill-conditioned, and not
            only of those that differ.

    Returns:
        One comparison for each number of replicas.
    """
    todo, done = [], []
    for replicas in strategies:
        rule = rules.excluded(case, replicas)
        if rule:
            done.append(Comparison(replicas, rule.name, []))
        else:
            todo.append(replicas)
    if not todo:
        return done
    try:
        expected = run(case)
    except Exception as error:
        said = [Difference("stock raised", _said(error))]
        return done + [Comparison(replicas, "invalid", said) for replicas in todo]
    chaotic = ill_conditioned(case, expected) if always_condition else None
    subject = FAULTS[fault](case) if fault else case
    for replicas in todo:
        if chaotic:
            done.append(Comparison(replicas, "ill-conditioned", []))
            continue
        try:
            if kind is None:
                actual = run(subject, permute=replicas > 1 and not case.dropout)
            else:
                actual = run(subject, kind, strategies[replicas])
            differences = compare(expected, actual)
        except Exception as error:
            differences = [Difference("raised", _said(error))]
        differences = [d for d in differences if not rules.left_out(case, replicas, d.quantity)]
        raised = any(d.quantity == "raised" for d in differences)
        if differences and not raised and chaotic is None:
            chaotic = ill_conditioned(case, expected)
        if differences and chaotic and not raised:
            done.append(Comparison(replicas, "ill-conditioned", differences))
        else:
            done.append(Comparison(replicas, "differs" if differences else "same", differences))
    return done


def _said(error: Exception) -> str:
    """The error, shortened, and the last place of it that is not Keras' or TensorFlow's."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0][:300]}"
    if len(lines) > 1:
        text += f" … {lines[-1][:200]}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    if own:
        text += f" (at {own[-1].filename}:{own[-1].lineno})"
    return text


def forget() -> None:
    """Lets go of the models of the last case."""
    keras.backend.clear_session()
    gc.collect()
