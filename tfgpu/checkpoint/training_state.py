"""The state of a training, by stable names: taken from a model and its callbacks, and put back.

It is in variables (weights, statistics, seeds, optimizer slots, averages, loss scale, metrics on
each replica, and those of `hidden_state`) and in a few counters of Keras' callbacks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfgpu.checkpoint import hidden_state
from tfgpu.checkpoint.format import Checkpoint
from tfgpu.engine import keras_internals as private
from tfgpu.engine.update import has_dynamic_scale, inner
from tfgpu.errors import ModelFileError, RequestError
from tfgpu.machine.hardware import usable_cores


@runtime_checkable
class Resumable(Protocol):
    """A callback with state of its own that a backup is to hold.

    Both methods are called between executions. The state is what JSON can hold: None, booleans,
    numbers, texts, lists of these, and dictionaries whose keys are texts. A tuple comes back as a
    list.
    """

    def get_state(self) -> dict[str, Any]:
        """Returns the state."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, after `on_train_begin`.

        In the middle of an epoch that epoch's `on_epoch_begin` is called once more then.
        """


def arrays_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Takes hold of all arrays that training changes; later assignments do not change them.

    Those of metrics are apart: see `metric_arrays`.

    Args:
        model: A `tfgpu.Model` in `fit`.

    Returns:
        Arrays by name: of variables, and of the best weights that callbacks keep.
    """
    arrays = {
        name: _host_array(_local(model, variable)[0])
        for name, variable in variables_of(model).items()
    }
    for name, callback in _callbacks_of(model).items():
        for j, weight in enumerate(getattr(callback, "best_weights", None) or []):
            arrays[f"callbacks/{name}/best_weights/{j}"] = np.asarray(weight)
    return arrays


def metric_arrays(model: keras.Model, *, rank: int) -> dict[str, np.ndarray]:
    """Takes hold of the metrics of each replica of this process, which hold its own rows.

    Args:
        model: A `tfgpu.Model` in `fit`.
        rank: Of this process among those that train together.

    Returns:
        Arrays by name, the replicas counted through all processes.
    """
    arrays = {}
    for name, variable in _metrics_of(model).items():
        local = _local(model, variable)
        for replica, value in enumerate(local, start=rank * len(local)):
            arrays[f"{name}/replica{replica}"] = _host_array(value)
    return arrays


def callback_states(model: keras.Model) -> dict[str, Any]:
    """Returns the state of each callback that has some, as JSON keeps it, by name."""
    states: dict[str, Any] = {}
    for name, callback in _callbacks_of(model).items():
        counters = {}
        for counter in _counters(callback):
            value = getattr(callback, counter)
            counters[counter] = value if isinstance(value, int | None) else float(value)
        states[name] = {"counters": counters}
        if isinstance(callback, Resumable):
            states[name]["state"] = _as_json(callback.get_state(), f"{name}.get_state()")
    return states


def _as_json(value: Any, where: str) -> Any:
    """A state in the types that JSON gives back.

    Raises:
        RequestError: It holds another; names it.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _as_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise RequestError(
        f"{where} is {_kind(value)}, which a backup cannot hold: let it return None, numbers, "
        "texts, lists, and dictionaries whose keys are texts"
    )


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        key = next(key for key in value if not isinstance(key, str))
        return f"a dictionary with the key {key!r}"
    return f"of the type {type(value).__name__}"


def callbacks_behind(model: keras.Model, callback: Any) -> list[str]:
    """The classes of callbacks with state that are called after a callback."""
    given = model.tfgpu_given_callbacks
    behind = given[given.index(callback) + 1 :] if callback in given else []
    return [type(each).__name__ for each in _callbacks_of(model).values() if each in behind]


def restore_variables(model: keras.Model, checkpoint: Checkpoint) -> list[str]:
    """Assigns every variable but those of metrics.

    Returns:
        The names of those, beside Keras' own, that are in the checkpoint and not in the model, or
        the other way round: they begin anew.

    Raises:
        ModelFileError: The checkpoint is of another model.
    """
    hidden_state.prepare(model, _listed_variables(model), checkpoint)
    wanted, anew = variables_of(model), []
    for name, variable in wanted.items():
        if name not in checkpoint.arrays:
            if name.startswith("loss_scale/"):
                continue  # The run so far had none: begin with a fresh one.
            if name.startswith(hidden_state.PREFIX):
                anew.append(name.removeprefix(hidden_state.PREFIX))
                continue
            if name == hidden_state.GENERATOR:
                continue  # Nobody had drawn from it.
            raise ModelFileError(f"{checkpoint.path} lacks {name}; it is of another model")
        value = checkpoint.arrays[name]
        if tuple(value.shape) != tuple(variable.shape):
            raise ModelFileError(
                f"{checkpoint.path} has {name} of shape {value.shape}, the model has "
                f"{tuple(variable.shape)}"
            )
        variable.assign(value)
    superfluous = [
        name
        for name in checkpoint.arrays
        if name not in wanted and not name.startswith(("loss_scale/", "metrics/", "callbacks/"))
    ]
    gone = [name for name in superfluous if name.startswith(hidden_state.PREFIX)]
    if len(gone) < len(superfluous):
        other = next(name for name in superfluous if name not in gone)
        raise ModelFileError(f"{checkpoint.path} has {other}, which the model lacks")
    return anew + [name.removeprefix(hidden_state.PREFIX) for name in gone]


def restore_callbacks(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Gives callbacks back their state; those that were not there before begin now."""
    # A class that was private when the checkpoint was written may be public now.
    states = {name.lstrip("_"): value for name, value in checkpoint.state["callbacks"].items()}
    for name, callback in _callbacks_of(model).items():
        if name not in states:
            continue
        for counter, value in states[name]["counters"].items():
            setattr(callback, counter, value)
        if "state" in states[name]:
            callback.set_state(states[name]["state"])
        prefix = f"callbacks/{name}/best_weights/"
        weights = [v for key, v in checkpoint.arrays.items() if key.startswith(prefix)]
        if weights:
            callback.best_weights = weights


def restore_metrics(model: keras.Model, checkpoint: Checkpoint, *, rank: int) -> None:
    """Assigns the metrics, on as many replicas as there are now.

    Args:
        model: A `tfgpu.Model` in `fit`.
        checkpoint: Of the same training.
        rank: Of this process among those that train together.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    for name, variable in _metrics_of(model).items():
        values: list[np.ndarray] = []
        while (key := f"{name}/replica{len(values)}") in checkpoint.arrays:
            values.append(checkpoint.arrays[key])
        if len(values) != replicas:
            # Another number of replicas: only the sum matters.
            zeros = [np.zeros_like(values[0])] * (replicas - 1)
            values = [np.sum(values, axis=0, dtype=values[0].dtype), *zeros]
        local = _local(model, variable)
        first = rank * len(local)
        for own, value in zip(local, values[first : first + len(local)], strict=True):
            own.assign(value)


def variables_of(model: keras.Model) -> dict[str, Any]:
    """Every variable that training changes, but for the metrics', by a stable name.

    They are Keras', and those of TensorFlow that `hidden_state` finds.
    """
    listed = _listed_variables(model)
    return listed | hidden_state.find(model, _known(model, listed))


def unsaved_state(model: keras.Model) -> hidden_state.Unsaved:
    """What steps change beside all that a checkpoint holds; after the first of this process."""
    return hidden_state.Unsaved(model, [*variables_of(model).values(), *model.metrics_variables])


def built_optimizers(model: keras.Model, saved: Collection[str]) -> dict[str, list[str]]:
    """What optimizers beside the model's own were built for; see `hidden_state.built_for`.

    Args:
        model: A `tfgpu.Model`.
        saved: The names of the arrays that are saved.
    """
    if not any(name.startswith(hidden_state.PREFIX) for name in saved):
        return {}
    return hidden_state.built_for(model, _listed_variables(model))


def _known(model: keras.Model, listed: Mapping[str, keras.Variable]) -> list[keras.Variable]:
    """The variables of Keras' lists; those of a loss scale also where no checkpoint has them."""
    optimizer = model.optimizer
    own = () if optimizer is None else private.optimizer_variables(optimizer)
    return [*listed.values(), *own, *model.metrics_variables]


def _listed_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Those of Keras' lists.

    Keras numbers the layers of a process, so the paths are no names to rely on.
    """
    optimizer = model.optimizer
    metrics = {id(variable) for variable in model.metrics_variables}
    named: dict[str, keras.Variable] = {}
    for i, variable in enumerate(v for v in model.variables if id(v) not in metrics):
        named[f"model/{i}/{variable.name}"] = variable
    if has_dynamic_scale(optimizer):
        for i, variable in enumerate(private.optimizer_variables(optimizer)):
            named[f"loss_scale/{i}"] = variable
    for i, variable in enumerate(inner(optimizer).variables):
        named[f"optimizer/{i}"] = variable
    return named


def _metrics_of(model: keras.Model) -> dict[str, keras.Variable]:
    return {f"metrics/{i}": v for i, v in enumerate(model.metrics_variables)}


def _callbacks_of(model: keras.Model) -> dict[str, Any]:
    """The other callbacks of this `fit` that have state to save, by a name."""
    named: dict[str, Any] = {}
    for callback in model.tfgpu_given_callbacks:
        if isinstance(callback, Resumable) or _counters(callback):
            name = type(callback).__name__.lstrip("_")
            same = sum(other.partition(".")[0] == name for other in named)
            named[f"{name}.{same}" if same else name] = callback
    return named


def set_up(model: keras.Model, *, resident: bool) -> dict[str, Any]:
    """What may change between two processes, at the price of other bits."""
    device = tf.DeviceSpec.from_string(_local(model, model.variables[0])[0].device).device_type
    threads = tf.config.threading.get_intra_op_parallelism_threads() or usable_cores()
    return {
        "replicas": model.distribute_strategy.num_replicas_in_sync,
        "device": device,
        # Sums are shared out to them, and so added up in another order.
        **({"intra_op_threads": threads} if device == "CPU" else {}),
        "precision": model.dtype_policy.name,
        "jit_compile": bool(model.jit_compile),
        "steps_per_execution": model.steps_per_execution,
        "input": "resident" if resident else "streaming",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _local(model: keras.Model, variable: Any) -> tuple[tf.Variable, ...]:
    """The copies of a variable, of Keras or TensorFlow, on this process's replicas."""
    value = variable if isinstance(variable, tf.Variable) else variable.value
    return model.distribute_strategy.experimental_local_results(value)


def _host_array(variable: tf.Variable) -> np.ndarray:
    """The value of a variable on one device, which later assignments do not change."""
    # The operation alone: for 538 variables `tf.convert_to_tensor` takes 25 ms more.
    value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    if "CPU" not in value.device:
        return value.numpy()
    try:
        # Without a copy: a variable whose buffer somebody holds is given a new one when it is
        # assigned to, and copying 200 MB at once takes as long as that.
        return np.asarray(memoryview(value))
    except (BufferError, TypeError, ValueError):  # Python knows no bfloat16.
        return value.numpy()


def not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first of the model's weights that is not finite."""
    for name, array in arrays.items():
        # 25 million numbers take 5 ms.
        if name.startswith("model/") and array.dtype.kind == "f" and not np.isfinite(array).all():
            return name
    return None


# Attributes in which Keras' callbacks remember: None, booleans, numbers.
_COUNTERS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: ("best", private.batches_since_saving.name)
    + (private.last_batch_seen.name,),
    keras.callbacks.SwapEMAWeights: (private.averages_in_model.name,),
}


def _counters(callback: Any) -> tuple[str, ...]:
    return next((names for kind, names in _COUNTERS.items() if isinstance(callback, kind)), ())
