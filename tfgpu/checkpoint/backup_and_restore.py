"""Exact resume of `tfgpu.Model.fit`: after any kill, the same bits as without it.

The data need no state: a batch is a function of (seed, epoch, step), so their position is
two integers. All else that training changes is in variables (weights, statistics, seeds,
optimizer slots, averages, loss scale, metrics on each replica) and in a few counters of
Keras' callbacks. A backup holds just these, at the end of an execution.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from tfgpu.artifacts.run_directory import differences
from tfgpu.checkpoint.fingerprint import describe
from tfgpu.checkpoint.non_finite_replay import Breakage, first_breakage
from tfgpu.checkpoint.store import Checkpoint, CheckpointStore, OtherRunError
from tfgpu.engine import keras_internals as private
from tfgpu.engine.batches import Batches
from tfgpu.errors import Interrupted, ModelFileError, RequestError, WorkError


@runtime_checkable
class Resumable(Protocol):
    """A callback with state of its own that a backup is to hold.

    Both methods are called between executions. The state is what JSON can hold.
    """

    def get_state(self) -> dict[str, Any]:
        """Returns the state."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, after `on_train_begin`."""


class BackupAndRestore(keras.callbacks.Callback):
    """Backs a training up, and continues it exactly when `fit` is called again.

    The counterpart of `keras.callbacks.BackupAndRestore`, which repeats the batches of the
    interrupted epoch and forgets the seeds of random layers. With this one, a `fit` that was
    killed at any instant and is called again in a new process, on a model built and compiled
    by the same code, ends with bit-identical weights, optimizer state and metrics. The
    training data have to come from `tfgpu.data.inputs.training_batches`.

    Put it last among the callbacks. Callbacks of Keras' own that remember (`EarlyStopping`,
    `ReduceLROnPlateau`, `ModelCheckpoint`, `SwapEMAWeights`) and those that are `Resumable` are
    restored too.

    Backups of another training (another model, optimizer, loss, metrics, data, seed, batch size
    or augmentation) are refused with a `RequestError` that names the differences. Other
    replicas, precision, XLA, steps per execution, or resident instead of streaming input are
    gone on with, and a warning says that the bits will differ.

    A backup that cannot be written is a warning, and the next one tries again. At the end of
    the training it is tried once more at once, and is then a `WorkError` that names the backup
    that still holds the weights.

    Example:

    ```python
    batches = training_batches(examples, batch_size=128, seed=0)
    model.fit(
        batches,
        steps_per_epoch=batches.steps_per_epoch,
        epochs=30,
        shuffle=False,
        callbacks=[early_stopping, tfgpu.BackupAndRestore("backup", save_freq=100)],
    )
    ```

    Args:
        backup_dir: Directory of the backups; made when it is missing.
        save_freq: Steps between two backups, or "epoch" for one at the end of each.
        keep: The newest ones to keep, beside the best.
        monitor: Log by which the best is told, such as "val_loss" (lower is better; one
            that ends in "accuracy", higher). Ignored while it is not in the logs.
        background: Whether to write in a thread of its own.
        write: Whether this process writes: False on all workers but the chief.
        warn: What to do with a warning's text.
        during: Makes a context that is entered while training waits for a backup.
        run: What else makes it this training, such as a fingerprint of the data: values that
            JSON keeps, by name.

    Attributes:
        save_seconds: How long training has waited for backups, in this process.
        resumed_from: Steps that had been done when this training began; None for a new one.
        exact: Whether the result is bit-identical to an uninterrupted run. False when
            what may be changed was.
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        *,
        save_freq: int | str = "epoch",
        keep: int = 2,
        monitor: str = "val_loss",
        background: bool = True,
        write: bool = True,
        warn: Callable[[str], None] | None = None,
        during: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        run: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise ValueError(f"save_freq must be 'epoch' or a positive integer, not {save_freq!r}")
        self.backup_dir = Path(backup_dir)
        self.save_seconds = 0.0
        self.resumed_from: int | None = None
        self.exact = True
        self._save_freq = save_freq
        self._keep = keep
        self._monitor = monitor
        self._background = background
        self._write = write
        self._warn = warn or _warn
        self._during = during
        self._more = dict(run or {})
        self._run: dict[str, Any] = {}
        self._stop: int | None = None
        self._store: CheckpointStore | None = None
        self._batches: Batches | None = None
        self._restored: Checkpoint | None = None
        self._epoch = 0
        self._done = 0  # In this epoch.
        self._best: float | None = None
        self._pending: tuple[int, dict[str, np.ndarray], dict[str, Any]] | None = None

    # ---- what the owner of the training may ask ------------------------------------------

    def request_stop(self, signum: int) -> None:
        """Asks for a backup and an end at the next opportunity; safe in a signal handler.

        Args:
            signum: The signal, for the `Interrupted` that then leaves `fit`.
        """
        self._stop = signum

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the training, in all processes together."""
        return self._epoch * self._steps_per_epoch + self._done

    @property
    def latest(self) -> Path | None:
        """The newest backup known to be sound; None before the first."""
        return None if self._store is None else self._store.latest

    @property
    def _steps_per_epoch(self) -> int:
        assert self._batches is not None
        return self._batches.steps_per_epoch or 0

    # ---- Keras' hooks --------------------------------------------------------------------

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        batches = getattr(self.model, "tfgpu_batches", None)
        if batches is None or not hasattr(batches.source, "from_step"):
            raise RequestError(
                "BackupAndRestore needs a tfgpu.Model and training data from "
                "tfgpu.data.inputs.training_batches: only their batches can be made again"
            )
        if not batches.steps_per_epoch:
            raise RequestError(
                "BackupAndRestore needs fit(..., steps_per_epoch=batches.steps_per_epoch)"
            )
        self._build(batches)
        self._batches = batches
        self._run = describe(self.model, batches.source) | self._more
        digest = hashlib.sha256(json.dumps(self._run, sort_keys=True).encode()).hexdigest()
        self._store = CheckpointStore(
            self.backup_dir, run_id=digest, keep=self._keep, warn=self._warn
        )
        batches.cut_every = self._save_freq if isinstance(self._save_freq, int) else None
        batches.exact = True
        try:
            checkpoint = self._store.newest()
        except OtherRunError as other:
            raise self._refusal(other) from None
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self._write:
            # What other callbacks write before the next backup is then known to be theirs to
            # take back, and a training that breaks at once can be looked into.
            with self._timed():
                self._save(self._capture(), background=False)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._restored is not None:
            self._done = self._restored.state["step"]
            if self._done:
                # `fit` has just reset the metrics, which hold the part of the epoch that is done.
                self._restore_metrics(self._restored)
            self._restored = None
        else:
            self._done = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._done = batch + 1
        assert self._store is not None
        self._store.poll()
        if self._done >= self._steps_per_epoch:
            # Written when the epoch's validation is through, which says whether it is the
            # best; kept, because validation overwrites the metrics.
            if self._write:
                with self._timed():
                    self._pending = self._capture()
            if self._stop is not None:
                self._leave()
            return
        due = isinstance(self._save_freq, int) and self.steps_done % self._save_freq == 0
        if self._stop is not None or due:
            self._back_up()
        if self._stop is not None:
            self._leave()

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._stop is not None and self._pending is not None:
            self._leave()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pending = None
        self._epoch, self._done = epoch + 1, 0
        due = self._save_freq == "epoch" or self.steps_done % int(self._save_freq) == 0
        best = self._is_best(logs or {})
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        if due or best or last or self._stop is not None:
            self._back_up(best=best)
        if self._stop is not None:
            self._leave()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        private.initial_epoch.set(self.model, None)
        self._wait_for_store()

    def close(self) -> None:
        """Waits for the writer and ends it; call it when `fit` was left by an exception."""
        if self._store is not None:
            self._store.close()

    def first_breakage(self, steps_done: int) -> Breakage | None:
        """Repeats the training from the last backup until a gradient is not finite.

        Leaves the model in the state in which it broke.

        Args:
            steps_done: Where to end.

        Returns:
            The step and the variable; None when nothing broke or there is no backup.
        """
        assert self._store is not None and self._batches is not None
        self._store.close()
        checkpoint = self._store.newest()
        if checkpoint is None or checkpoint.step >= steps_done:
            return None
        self._restore(checkpoint)
        steps = steps_done - checkpoint.step
        return first_breakage(self.model, self._batches, start_step=checkpoint.step, steps=steps)

    def _build(self, batches: Batches) -> None:
        """Makes all variables, which a model with a `train_step` of its own has after its first.

        Raises:
            RequestError: They cannot be made before.
        """
        model = self.model
        compiled = (private.compile_loss(model), private.compile_metrics(model), model.optimizer)
        parts = (model, *compiled)
        if all(part is None or part.built for part in parts):
            return
        try:
            model.tfgpu_build(batches.model_spec)
        except (RuntimeError, ValueError) as error:
            raise RequestError(
                "BackupAndRestore needs a model that is built: call it on a batch once before "
                f"`fit` ({error})"
            ) from error

    # ---- saving --------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._pending is not None:
            self._save(self._pending)
            self._pending = None
        self._wait_for_store()
        assert self._stop is not None
        raise Interrupted(self._stop)

    def _wait_for_store(self) -> None:
        """Waits until the last backup is on the disk: no other will be tried.

        Raises:
            WorkError: It cannot be written.
        """
        assert self._store is not None
        try:
            self._store.wait()
        except OSError as error:
            latest = self._store.latest
            kept = f"{latest} holds the last state that was saved" if latest else "none was"
            raise WorkError(
                f"{error.strerror} while writing {error.filename}, the state after step "
                f"{self.steps_done}; {kept}: free some space and start again, and it goes on from "
                "there"
            ) from error

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        with self._during():
            began = time.perf_counter()
            try:
                yield
            finally:
                self.save_seconds += time.perf_counter() - began

    def _back_up(self, *, best: bool = False) -> None:
        if self._write:
            with self._timed():
                self._save(self._capture(), best=best, background=self._background)

    def _save(
        self,
        captured: tuple[int, dict[str, np.ndarray], dict[str, Any]],
        *,
        best: bool = False,
        background: bool = True,
    ) -> None:
        assert self._store is not None
        step, arrays, state = captured
        if (broken := _not_finite(arrays)) is not None:
            self._warn(
                f"no backup after step {step}: {self._variables()[broken].path} is not finite; "
                "the last good one is kept"
            )
            return
        if background:
            self._store.save_in_background(step, arrays, state, best=best)
        else:
            self._store.save(step, arrays, state, best=best)

    def _capture(self) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
        """Takes hold of all state: with the check, all of saving that training waits for."""
        arrays = {
            name: _host_array(_local(self.model, variable)[0])
            for name, variable in self._variables().items()
        }
        for name, variable in self._metrics().items():
            for replica, value in enumerate(_local(self.model, variable)):
                arrays[f"{name}/replica{replica}"] = _host_array(value)
        for name, callback in self._callbacks().items():
            for j, weight in enumerate(getattr(callback, "best_weights", None) or []):
                arrays[f"callbacks/{name}/best_weights/{j}"] = np.asarray(weight)
        state = {
            "run": self._run,
            "epoch": self._epoch,
            "step": self._done,
            "steps_per_epoch": self._steps_per_epoch,
            "stopped": bool(self.model.stop_training),
            "best": self._best,
            "how": self._how(),
            "callbacks": {
                name: _callback_state(callback) for name, callback in self._callbacks().items()
            },
        }
        return self.steps_done, arrays, state

    def _is_best(self, logs: Mapping[str, Any]) -> bool:
        value = logs.get(self._monitor)
        if value is None:
            return False
        value = float(value)
        if self._monitor.endswith("accuracy"):
            value = -value
        if self._best is not None and not value < self._best:
            return False
        self._best = value
        return True

    # ---- restoring -----------------------------------------------------------------------

    def _refusal(self, other: OtherRunError) -> RequestError:
        """Says in what the training of a backup differs from this one."""
        found = differences(other.state.get("run", {}), self._run, ignoring=frozenset())
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        return RequestError(
            f"{other.path} is of another training ({shown}); name another directory, or make it "
            "the same again"
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state["steps_per_epoch"] != self._steps_per_epoch:
            raise RequestError(
                f"{checkpoint.path} is of a run with {state['steps_per_epoch']} steps an epoch, "
                f"this one has {self._steps_per_epoch}"
            )
        how = self._how()
        changed = differences(state["how"], how, ignoring=frozenset())
        if changed:
            self.exact = False
            self._warn(
                "resuming with another set-up, so the result will not be bit-identical ("
                + "; ".join(changed)
                + ")"
            )
        wanted = self._variables()
        known = set(wanted)
        for name, variable in wanted.items():
            if name not in checkpoint.arrays:
                if name.startswith("loss_scale/"):
                    continue  # The run so far had none: begin with a fresh one.
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
            if name not in known and not name.startswith(("loss_scale/", "metrics/", "callbacks/"))
        ]
        if superfluous:
            raise ModelFileError(f"{checkpoint.path} has {superfluous[0]}, which the model lacks")
        self._best = state["best"]
        for name, callback in self._callbacks().items():
            if name not in state["callbacks"]:
                continue  # It was not there before: it begins now.
            _set_callback_state(callback, state["callbacks"][name])
            prefix = f"callbacks/{name}/best_weights/"
            weights = [v for key, v in checkpoint.arrays.items() if key.startswith(prefix)]
            if weights:
                callback.best_weights = weights
        epochs = self.params.get("epochs", 0)
        self.resumed_from = checkpoint.step
        self._epoch, self._done = state["epoch"], state["step"]
        # `fit` reads this after `on_train_begin`; 0 is "not set" to it, and right then too.
        private.initial_epoch.set(self.model, epochs if state["stopped"] else state["epoch"])
        assert self._batches is not None
        self._batches.seek(checkpoint.step, done=state["step"])
        self._restored = checkpoint

    def _restore_metrics(self, checkpoint: Checkpoint) -> None:
        for name, variable in self._metrics().items():
            values: list[np.ndarray] = []
            while (key := f"{name}/replica{len(values)}") in checkpoint.arrays:
                values.append(checkpoint.arrays[key])
            local = _local(self.model, variable)
            if len(values) != len(local):
                # Another number of replicas: only the sum matters.
                zeros = [np.zeros_like(values[0])] * (len(local) - 1)
                values = [np.sum(values, axis=0, dtype=values[0].dtype), *zeros]
            for own, value in zip(local, values, strict=True):
                own.assign(value)

    # ---- what there is -------------------------------------------------------------------

    def _variables(self) -> dict[str, keras.Variable]:
        """Every variable that training changes, but for the metrics', by a stable name.

        Keras numbers the layers of a process, so the paths are no names to rely on.
        """
        model, optimizer = self.model, self.model.optimizer
        metrics = {id(variable) for variable in model.metrics_variables}
        named: dict[str, keras.Variable] = {}
        for i, variable in enumerate(v for v in model.variables if id(v) not in metrics):
            named[f"model/{i}/{variable.name}"] = variable
        inner = optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            inner = optimizer.inner_optimizer
            for i, variable in enumerate(private.optimizer_variables(optimizer)):
                named[f"loss_scale/{i}"] = variable
        for i, variable in enumerate(inner.variables):
            named[f"optimizer/{i}"] = variable
        return named

    def _metrics(self) -> dict[str, keras.Variable]:
        return {f"metrics/{i}": v for i, v in enumerate(self.model.metrics_variables)}

    def _callbacks(self) -> dict[str, Any]:
        """The other callbacks of this `fit` that have state to save, by a name."""
        given = self.model.tfgpu_callbacks or []
        if isinstance(given, keras.callbacks.CallbackList):
            given = given.callbacks
        given = given if isinstance(given, list | tuple) else [given]
        named: dict[str, Any] = {}
        for callback in given:
            if isinstance(callback, Resumable) or _counters(callback):
                name = type(callback).__name__
                same = sum(other.partition(".")[0] == name for other in named)
                named[f"{name}.{same}" if same else name] = callback
        return named

    def _how(self) -> dict[str, Any]:
        """What may change between two processes, at the price of other bits."""
        assert self._batches is not None
        model = self.model
        device = tf.DeviceSpec.from_string(_local(model, model.variables[0])[0].device).device_type
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = tf.config.threading.get_intra_op_parallelism_threads() or cores
        return {
            "replicas": model.distribute_strategy.num_replicas_in_sync,
            "device": device,
            # Sums are shared out to them, and so added up in another order.
            **({"intra_op_threads": threads} if device == "CPU" else {}),
            "precision": model.dtype_policy.name,
            "jit_compile": bool(model.jit_compile),
            "steps_per_execution": model.steps_per_execution,
            "input": "resident" if self._batches.resident else "streaming",
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        }


def _local(model: keras.Model, variable: keras.Variable) -> tuple[tf.Variable, ...]:
    """The copies of a variable on this process's replicas."""
    return model.distribute_strategy.experimental_local_results(variable.value)


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


def _not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
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
    keras.callbacks.ModelCheckpoint: ("best", private.batches_since_saving.name),
    keras.callbacks.SwapEMAWeights: (private.averages_in_model.name,),
}


def _counters(callback: Any) -> tuple[str, ...]:
    return next((names for kind, names in _COUNTERS.items() if isinstance(callback, kind)), ())


def _callback_state(callback: Any) -> dict[str, Any]:
    state = {}
    for name in _counters(callback):
        value = getattr(callback, name)
        state[name] = value if isinstance(value, int | None) else float(value)
    own = {"state": callback.get_state()} if isinstance(callback, Resumable) else {}
    return {"counters": state, **own}


def _set_callback_state(callback: Any, state: dict[str, Any]) -> None:
    for name, value in state["counters"].items():
        setattr(callback, name, value)
    if "state" in state:
        callback.set_state(state["state"])


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=3)
