"""State that steps change and Keras does not count among the variables of a model.

A model with a step of its own may have a second optimizer, a layer a `tf.Variable` or a
`tf.random.Generator`, a loss a variable. They are found from the model on, through its attributes
and those of what Keras and TensorFlow make, and named by them. What is not found so, such as a
variable of a module, can only be spoken of, and so can the numbers that operations of TensorFlow
such as `tf.random.normal` draw: their state is nobody's to read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.checkpoint.format import Checkpoint
from tfgpu.engine import keras_internals as private
from tfgpu.engine.batches import has_several_workers
from tfgpu.engine.execution import draws_by_operations

PREFIX = "hidden/"
"""Of the names of arrays that are not in Keras' lists."""

GENERATOR = "random/keras"
"""The array of the generator that `keras.random` draws from where no seed is given."""

_LOOKED_INTO: tuple[type, ...] = (
    keras.layers.Layer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.random.SeedGenerator,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    tf.Module,
    tf.random.Generator,
)


def find(model: keras.Model, known: Collection[Any]) -> dict[str, Any]:
    """Finds the variables that a model has beside those of Keras' lists.

    Args:
        model: A `tfgpu.Model`.
        known: Variables of these lists.

    Returns:
        The variables by name.
    """
    found: dict[str, Any] = {}
    seen = {id(each) for variable in known for each in (variable, _value_of(variable))}
    for path, value in _parts(model):
        if isinstance(value, keras.optimizers.Optimizer):
            named = {f"{path}/{i}": variable for i, variable in enumerate(value.variables)}
        else:
            named = {path: value} if isinstance(value, keras.Variable | tf.Variable) else {}
        for name, variable in named.items():
            if id(variable) not in seen:
                seen.add(id(variable))
                found |= {PREFIX + key: part for key, part in _saved(model, name, variable)}
    generator = private.global_generator()
    if generator is not None:
        found[GENERATOR] = generator.state
    return found


def built_for(model: keras.Model, named: Mapping[str, keras.Variable]) -> dict[str, list[str]]:
    """For which variables the optimizers beside the model's own were built.

    Args:
        model: A `tfgpu.Model`.
        named: Its variables by their names in a checkpoint.

    Returns:
        Names of variables, by the path of the optimizer.
    """
    names = {id(variable): name for name, variable in named.items()}
    optimizers = {}
    for path, optimizer in _other_optimizers(model):
        updated = private.updated_variables(optimizer) if optimizer.built else ()
        if updated and all(id(variable) in names for variable in updated):
            optimizers[path] = [names[id(variable)] for variable in updated]
    return optimizers


def prepare(
    model: keras.Model, named: Mapping[str, keras.Variable], checkpoint: Checkpoint
) -> None:
    """Makes what only the first step would make, so that a checkpoint can be put back.

    Args:
        model: A `tfgpu.Model`, before its first step.
        named: Its variables by their names in a checkpoint.
        checkpoint: Of the same training.
    """
    optimizers = checkpoint.state.get("optimizers", {})
    with model.distribute_strategy.scope():
        for path, optimizer in _other_optimizers(model):
            names = optimizers.get(path, ())
            if names and not optimizer.built and all(name in named for name in names):
                optimizer.build([named[name] for name in names])
        if GENERATOR in checkpoint.arrays and private.global_generator() is None:
            private.set_global_generator(keras.random.SeedGenerator(name="seed_generator"))


class Unsaved:
    """What the steps of a training change and no checkpoint holds; found once steps were traced.

    Args:
        model: A `tfgpu.Model` that has trained.
        known: The variables that checkpoints hold, and those of metrics.
    """

    def __init__(self, model: keras.Model, known: Collection[Any]):
        own = {id(each) for variable in known for each in _copies(model, variable)}
        own |= {id(_value_of(variable)) for variable in known}
        if model.tfgpu_statistics is not None:
            own |= {id(each) for each in vars(model.tfgpu_statistics).values()}
        traced = list(_traced(model))
        self._draws = any(draws_by_operations(function) for function in traced)
        self._before = {
            id(variable): (variable, _value(variable))
            for function in traced
            for variable in function.graph.variables
            if id(variable) not in own
        }

    def news(self) -> list[str]:
        """What there is to say that has not been said: of a variable once it has changed."""
        said = []
        if self._draws:
            self._draws = False
            said.append(
                "steps draw with random operations of TensorFlow, whose state cannot be saved: a "
                "training that is continued draws other numbers; use keras.random with a "
                "keras.random.SeedGenerator that a layer keeps"
            )
        for key, (variable, before) in list(self._before.items()):
            if not np.array_equal(before, _value(variable)):
                del self._before[key]
                said.append(
                    f"steps assign to {variable.name.partition(':')[0]}, which is not part of the "
                    "model, so backups do not hold it: make it an attribute of the model or of a "
                    "layer"
                )
        return said


def _traced(model: keras.Model) -> Iterator[Any]:
    for function in getattr(model.train_function, "traced", ()):
        if isinstance(function, private.TracedFunction):
            yield from private.concrete_functions(function)


def _value(variable: tf.Variable) -> np.ndarray:
    value: np.ndarray = tf.raw_ops.ReadVariableOp(
        resource=variable.handle, dtype=variable.dtype
    ).numpy()
    return value


def _copies(model: keras.Model, variable: Any) -> tuple[tf.Variable, ...]:
    """The copies of a variable on the replicas of this process."""
    strategy = model.distribute_strategy
    copies: tuple[tf.Variable, ...] = strategy.experimental_local_results(_value_of(variable))
    return copies


def _value_of(variable: Any) -> Any:
    """What TensorFlow has of a variable of Keras, which may have several copies."""
    return variable if isinstance(variable, tf.Variable) else private.variable_value(variable)


def _saved(model: keras.Model, name: str, variable: Any) -> Iterator[tuple[str, Any]]:
    """What is saved of a variable, by name: itself, or each replica's own value of it."""
    dtype, copies = tf.as_dtype(variable.dtype), _copies(model, variable)
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex):
        return
    if not isinstance(_value_of(variable), private.SyncOnReadVariable):
        yield name, variable
    # Of several workers the chief alone saves, and knows its own replicas.
    elif not has_several_workers(model.distribute_strategy):
        yield from ((f"{name}/replica{i}", copy) for i, copy in enumerate(copies))


def _other_optimizers(model: keras.Model) -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    for path, value in _parts(model):
        # That within a LossScaleOptimizer is built with it.
        if isinstance(value, keras.optimizers.Optimizer) and not path.startswith("optimizer"):
            yield path, value


def _parts(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """What a model consists of, itself included, each with its path: by attributes and indices."""
    seen: set[int] = set()
    found: list[tuple[str, Any]] = [("", model)]
    while found:
        path, value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        kind = _kind(value)
        inner: list[tuple[Any, Any]] = []
        if kind == "object":
            # Attributes of TensorFlow's own for its checkpoints say it all a second time.
            inner = [(n, v) for n, v in vars(value).items() if not n.startswith("_self_")]
        elif kind == "mapping":
            inner = list(value.items())
        elif kind == "sequence":
            inner = list(enumerate(value))
        # The first is the last to be put there, and so the first to be looked into.
        for name, part in reversed(inner):
            if _kind(part) is not None:
                found.append((f"{path}.{name}" if path else str(name), part))


_kinds: dict[type, str | None] = {}


def _kind(value: Any) -> str | None:
    """How a value is looked into; None for what is passed over."""
    kind = type(value)
    if kind not in _kinds:  # To ask takes ten times as long.
        if isinstance(value, keras.Variable | tf.Variable):
            _kinds[kind] = "variable"
        elif isinstance(value, _LOOKED_INTO):
            _kinds[kind] = "object"
        elif isinstance(value, Mapping):
            _kinds[kind] = "mapping"
        else:
            _kinds[kind] = "sequence" if isinstance(value, list | tuple) else None
    return _kinds[kind]
