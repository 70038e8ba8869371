"""Exact resume of `tfgpu.Model.fit`: after any kill, the same bits as without it.

The data need no state: a batch is a function of (seed, epoch, step), so their position is
two integers. A backup holds these and the `training_state` at the end of an execution.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfgpu.artifacts.differences import differences
from tfgpu.checkpoint import continuation, sharing, training_state
from tfgpu.checkpoint.fingerprint import describe
from tfgpu.checkpoint.format import Checkpoint
from tfgpu.checkpoint.hidden_state import Unsaved
from tfgpu.checkpoint.non_finite_replay import Breakage, first_breakage
from tfgpu.checkpoint.store import CheckpointStore, OtherRunError
from tfgpu.cluster.membership import Membership, alone
from tfgpu.engine import keras_internals as private
from tfgpu.engine.batches import Batches
from tfgpu.errors import Interrupted, RequestError, WorkError

_Captured = tuple[int, dict[str, np.ndarray], dict[str, Any]]
"""Steps done, arrays and state of a training at the end of an execution."""


class BackupAndRestore(keras.callbacks.Callback):
    """Backs a training up, and continues it exactly when `fit` is called again.

    The counterpart of `keras.callbacks.BackupAndRestore`, which repeats the batches of the
    interrupted epoch and forgets the seeds of random layers. With this one, a `fit` that was
    killed at any instant and is called again in a new process, on a model built and compiled
    by the same code, ends with bit-identical weights, optimizer state and metrics. The
    training data have to come from `tfgpu.data.inputs.training_batches`.

    Put it last among the callbacks. Callbacks of Keras' own that remember (`EarlyStopping`,
    `ReduceLROnPlateau`, `ModelCheckpoint`, `SwapEMAWeights`) and those that are `Resumable` are
    restored too. So is what else the model leads to: the optimizers of a step of its own, variables
    of TensorFlow, generators. What no backup can hold, such as the state of `tf.random.normal`, is
    named in a warning. A `fit` that had come to its end trains nothing.

    Backups of another training (another model, optimizer, loss, metrics, data, seed, batch size
    or augmentation) are refused with a `RequestError` that names the differences. Other
    replicas, precision, XLA, steps per execution, or resident instead of streaming input are
    gone on with, and a warning says that the bits will differ.

    A backup that cannot be written is a warning, and the next one tries again. At the end of
    the training it is tried once more at once, and is then a `WorkError` that names the backup
    that still holds the weights; so is the first one, before the first step. While training
    writes to a directory, another process that is to write there is refused with a
    `RequestError`.

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
        write: Whether this process writes.
        members: The processes that train together: the chief alone then reads and writes, and
            all stop at the same step. None for a process by itself.
        warn: What to do with a warning's text.
        during: Makes a context that is entered while training waits for a backup.
        run: What else makes it this training, such as a fingerprint of the data: values that
            JSON keeps, by name.
        known: What `continuation.check` has read already, which is not read again.

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
        members: Membership | None = None,
        warn: Callable[[str], None] | None = None,
        during: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        run: Mapping[str, Any] | None = None,
        known: Checkpoint | None = None,
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
        self._members = members or alone()
        self._write = write and self._members.is_chief
        self._warn = warn or _warn
        self._during = during
        self._more = dict(run or {})
        self._known = known
        self._run: dict[str, Any] = {}
        self._stop: int | None = None
        self._store: CheckpointStore | None = None
        self._batches: Batches | None = None
        self._restored: Checkpoint | None = None
        self._epoch = 0
        self._done = 0  # In this epoch.
        self._best: float | None = None
        self._pending: _Captured | None = None
        self._in_validation = False
        self._offset: int | None = None  # Of the data, see `Batches`.
        self._unsaved: Unsaved | None = None

    # ---- what the owner of the training may ask ------------------------------------------

    def request_stop(self, signum: int) -> None:
        """Asks for a backup and an end at the next opportunity; safe in a signal handler.

        Args:
            signum: The signal, for the `Interrupted` that then leaves `fit`.
        """
        self._members.request_stop(signum)

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
        if behind := training_state.callbacks_behind(self.model, self):
            raise RequestError(
                f"BackupAndRestore stands before {behind[0]}, whose state it would save too early; "
                "put it last among the callbacks"
            )
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
        continuation.build(self.model, batches)
        self._batches = batches
        self._run = describe(self.model, batches.source) | self._more
        self._store = CheckpointStore(
            self.backup_dir, run_id=continuation.digest(self._run), keep=self._keep, warn=self._warn
        )
        batches.cut_every = self._save_freq if isinstance(self._save_freq, int) else None
        batches.exact = True
        if self._write:
            self._store.lock()
        try:
            checkpoint = self._newest()
        except OtherRunError as other:
            raise continuation.refusal(other, self._run) from None
        if checkpoint is not None:
            self._restore(checkpoint)
        sharing.check_equal(self._members, training_state.arrays_of(self.model))
        if checkpoint is None:
            # What other callbacks write before the next backup is then known to be theirs to
            # take back, and a training that breaks at once can be looked into.
            with self._timed():
                self._save_first()
        self._members.begin()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._offset is None:
            self._begin_at(epoch)
        if self._restored is not None:
            self._done = self._restored.state["step"]
            if self._done:
                # `fit` has just reset the metrics, which hold the part of the epoch that is done,
                # and others have begun the epoch once more: one may have set the learning rate.
                training_state.restore_variables(self.model, self._restored)
                training_state.restore_metrics(self.model, self._restored, rank=self._members.rank)
            self._restored.arrays.clear()  # Of `known`, which others may hold.
            self._restored = None
        else:
            self._done = 0

    def _begin_at(self, epoch: int) -> None:
        """Notes where in the data a training begins, whose first epoch need not be number 0."""
        assert self._batches is not None
        first = epoch * self._steps_per_epoch
        self._offset = self._batches.offset = self._batches.source.start_step - first
        if first:
            self._batches.seek(first)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._done = batch + 1
        assert self._store is not None
        self._store.poll()
        if self._unsaved is None:
            self._say_unsaved()
        stops = self._stops()
        if self._done >= self._steps_per_epoch:
            # Written when the epoch's validation is through, which says whether it is the
            # best; kept, because validation overwrites the metrics.
            self._in_validation = True
            with self._timed():
                self._pending = self._capture()
        elif stops or self._is_due():
            self._back_up()
        if stops:
            self._leave()

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._in_validation and self._stops():
            self._leave()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._pending, self._in_validation = None, False
        self._epoch, self._done = epoch + 1, 0
        due = self._save_freq == "epoch" or self._is_due()
        best = self._is_best(logs or {})
        last = epoch + 1 == self.params.get("epochs") or self.model.stop_training
        stops = self._stops()
        if due or best or last or stops:
            self._back_up(best=best)
        if stops:
            self._leave()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        private.initial_epoch.set(self.model, None)
        self._wait_for_store()
        self.close()

    def close(self) -> None:
        """Waits for the writer and lets others write; for when `fit` was left by an exception."""
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
        checkpoint = self._newest()
        if checkpoint is None or checkpoint.step >= steps_done:
            return None
        self._restore(checkpoint)
        steps = steps_done - checkpoint.step
        return first_breakage(self.model, self._batches, start_step=checkpoint.step, steps=steps)

    # ---- saving --------------------------------------------------------------------------

    def _say_unsaved(self) -> None:
        """Says what of the state that steps change no backup can hold."""
        self._unsaved = self._unsaved or training_state.unsaved_state(self.model)
        for text in self._unsaved.news():
            self.exact = self.exact and self.resumed_from is None
            self._warn(text)

    def _save_first(self) -> None:
        """Saves before the first step.

        Raises:
            WorkError: The backup cannot be written; nothing is lost by ending here.
        """
        try:
            self._save(self._capture(), background=False)
        except OSError as error:
            raise WorkError(
                f"{error.strerror} while writing {error.filename}, the first backup; nothing has "
                "been trained yet: free some space and start again"
            ) from error

    def _stops(self) -> bool:
        """Whether all processes stop here; is asked equally often by each."""
        signum = self._members.boundary()
        if signum is not None:
            self._stop = signum
        return self._stop is not None

    def _leave(self) -> None:
        self._save(self._pending)
        self._pending = None
        self._wait_for_store()
        self.close()
        # The others leave when it is on the disk.
        self._members.finish("the end", None)
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

    def _is_due(self) -> bool:
        return isinstance(self._save_freq, int) and self.steps_done % self._save_freq == 0

    def _back_up(self, *, best: bool = False) -> None:
        with self._timed():
            self._save(self._capture(), best=best, background=self._background)

    def _save(
        self, captured: _Captured | None, *, best: bool = False, background: bool = True
    ) -> None:
        if captured is None:
            return
        assert self._store is not None
        step, arrays, state = captured
        if (broken := training_state.not_finite(arrays)) is not None:
            name = training_state.variables_of(self.model)[broken].path
            self._warn(
                f"no backup after step {step}: {name} is not finite; the last good one is kept"
            )
            return
        if background:
            self._store.save_in_background(step, arrays, state, best=best)
        else:
            self._store.save(step, arrays, state, best=best)

    def _capture(self) -> _Captured | None:
        """Takes hold of all state: with the check, all of saving that training waits for.

        None where this process does not write.
        """
        if self._unsaved is not None:
            self._say_unsaved()
        own = training_state.metric_arrays(self.model, rank=self._members.rank)
        metrics = sharing.add_metrics_of_others(self._members, own)
        if not self._write or metrics is None:
            return None
        arrays = training_state.arrays_of(self.model) | metrics
        state = {
            "run": self._run,
            "epoch": self._epoch,
            "step": self._done,
            "steps_per_epoch": self._steps_per_epoch,
            "offset": self._offset,
            "optimizers": training_state.built_optimizers(self.model, arrays),
            "stopped": bool(self.model.stop_training),
            "best": self._best,
            "how": self._set_up(),
            "callbacks": training_state.callback_states(self.model),
        }
        return self.steps_done, arrays, state

    def _is_best(self, logs: Mapping[str, Any]) -> bool:
        if logs.get(self._monitor) is None:
            return False
        value = float(logs[self._monitor])
        if math.isnan(value):
            return False
        if self._monitor.endswith("accuracy"):
            value = -value
        if self._best is not None and not value < self._best:
            return False
        self._best = value
        return True

    def _set_up(self) -> dict[str, Any]:
        assert self._batches is not None
        return training_state.set_up(self.model, resident=bool(self._batches.resident))

    def _newest(self) -> Checkpoint | None:
        """The newest sound checkpoint, which the chief alone has to have."""
        assert self._store is not None
        known, self._known = self._known, None
        own = self._store.newest(known) if self._members.is_chief else None
        return sharing.share(self._members, own)

    # ---- restoring -----------------------------------------------------------------------

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        continuation.check_steps(checkpoint, self._steps_per_epoch)
        changed = differences(state["how"], self._set_up())
        if changed:
            self.exact = False
            self._warn(
                "resuming with another set-up, so the result will not be bit-identical "
                f"({'; '.join(changed)})"
            )
        if anew := training_state.restore_variables(self.model, checkpoint):
            self.exact = False
            self._warn(
                f"{checkpoint.path} and the model do not both have {anew[0]}, which begins anew: "
                "make it when the model is made"
            )
        self._best = state["best"]
        training_state.restore_callbacks(self.model, checkpoint)
        epochs = self.params.get("epochs", 0)
        self.resumed_from = checkpoint.step
        self._epoch, self._done = state["epoch"], state["step"]
        # `fit` reads this after `on_train_begin`; 0 is "not set" to it, and right then too.
        private.initial_epoch.set(self.model, epochs if state["stopped"] else state["epoch"])
        assert self._batches is not None
        # Not known before the first epoch.
        self._offset = state.get("offset", 0 if checkpoint.step else None)
        if self._offset is not None:
            self._batches.offset = self._offset
            self._batches.seek(checkpoint.step, done=state["step"])
        self._restored = checkpoint


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
