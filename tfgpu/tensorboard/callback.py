"""`tfgpu.TensorBoard`: Keras' callback, and beside its metrics where the time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.util import tensor_util

from tfgpu.engine import keras_internals as private
from tfgpu.engine import update
from tfgpu.engine.batches import Batches
from tfgpu.engine.step_statistics import StepStatistics
from tfgpu.machine import flops
from tfgpu.machine.peak_rate import peak_flops
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.graph import step_graph

# Images of a batch, and mistakes, in a picture.
_SHOWN = 16


@dataclasses.dataclass
class _Interval:
    """What was measured since the last time something was written."""

    began: float
    examples: float
    input_seconds: float
    saving_seconds: float
    steps: int = 0
    executing: float = 0.0


class TensorBoard(private.TensorBoardHooks):
    """Writes event files that TensorBoard shows; for `tfgpu.Model.fit`, and for Keras' own.

    Tags and folders are those of `keras.callbacks.TensorBoard`: `train/` and `validation/` with
    `epoch_<metric>` by epoch, and `batch_<metric>` by batches consumed. Neither step goes back:
    when a `tfgpu.BackupAndRestore` in the same `fit` resumes a training, the files are cut back to
    where they were, so that no step is in them twice and none is missing. Beside them it writes

    - the graph of the training step and the conceptual graph of the model;
    - `performance/`: samples per second, the milliseconds of a step and what of them went into
      waiting for input, the device, the host and checkpoints, and how far the device is used: the
      model's FLOP/s (`tfgpu.machine.flops`) over those of a large matrix product
      (`tfgpu.machine.peak_rate`);
    - `training/gradient_norm` and `training/loss_scale`, and `memory/` in GiB;
    - with data of `tfgpu.data`, a batch as the network sees it, after augmentation.

    The first execution of each number of steps is left out of `performance/`: it is traced and
    compiled.

    Args:
        log_dir: Where the event files go.
        histogram_freq: Epochs between two histograms of the weights; 0 for none.
        write_graph: Whether to write the graphs.
        write_images: Whether histograms come with pictures of the weights.
        update_freq: Batches between two writings of `batch_<metric>` and `performance/`; "batch"
            for each one (each execution, with several steps in one), "epoch" for the latter once
            an epoch and the former not at all.
        profile_batch: The batch, or the first and the last, to profile; counted from 1. 0 for none.
        class_names: Names of the labels, for the pictures.
        hparams: Settings of this training for the HParams tab: numbers, texts, booleans.
        write_batches: Whether to show a batch: of the first epoch, or of `"every"` epoch.
        **arguments: Others of `keras.callbacks.TensorBoard`.
    """

    def __init__(
        self,
        log_dir: str | Path = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        update_freq: int | Literal["batch", "epoch"] = "epoch",
        profile_batch: int | Sequence[int] = 0,
        *,
        class_names: Sequence[str] = (),
        hparams: Mapping[str, Any] | None = None,
        write_batches: bool | Literal["every"] = True,
        **arguments: Any,
    ):
        super().__init__(
            log_dir=str(log_dir),
            histogram_freq=histogram_freq,
            write_graph=write_graph,
            write_images=write_images,
            update_freq=update_freq,
            profile_batch=profile_batch,
            **arguments,
        )
        self._directory = Path(log_dir)
        self._class_names = tuple(class_names)
        self._hparams = dict(hparams) if hparams is not None else None
        self._write_batches = write_batches
        self._statistics: StepStatistics | None = None
        self._interval: _Interval | None = None
        self._lengths: set[int] = set()  # Of executions that were traced.
        self._base = self._consumed = self._written = 0
        self._pictured = -1  # The last epoch whose batch was shown.
        self._first_of_execution = 0
        self._execution_began = 0.0
        self._graph_written = False
        self._flops: float | None = None
        self._peak = 0.0
        self._marker: Any = None
        self._batches: Batches | None = None

    # ---- going back with a resumed run -----------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns the size of each event file, in bytes, and what need not be written again."""
        for writer in self.open_writers.values():
            writer.flush()
        return {
            "files": {
                file.relative_to(self._directory).as_posix(): file.stat().st_size
                for file in self._event_files()
            },
            "graph": self._graph_written,
            "pictured": self._pictured,
            "consumed": self._consumed,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Cuts the event files back to those sizes and removes the ones that were not there."""
        # `on_train_begin` has opened a file already; the next event opens another.
        self.close_writers()
        for file in self._event_files():
            size = state["files"].get(file.relative_to(self._directory).as_posix(), 0)
            if size == 0:
                file.unlink()
            elif file.stat().st_size > size:
                with open(file, "r+b") as opened:
                    opened.truncate(size)
        self._graph_written, self._pictured = state["graph"], state["pictured"]
        self._consumed = self._written = state["consumed"]

    def _event_files(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(self._directory.rglob("events.out.tfevents.*"))

    def close_writers(self) -> None:
        """Closes all event files."""
        private.close_writers.function(self)
        self.open_writers = {}  # What is written later opens new files.

    def push_writer(self, writer: Any, step: int) -> None:
        """Makes `writer` the one of summaries that a step writes."""
        # Keras goes on to record only every `update_freq`-th batch, also what it writes itself at
        # the end of an epoch. Of a model's own summaries it records all or, above 1, none.
        entered = contextlib.ExitStack()
        if self.update_freq == 1:
            entered.enter_context(writer.as_default(step))
        self.entered_writers.append(entered)

    def pop_writer(self) -> None:
        """Takes back what `push_writer` did last."""
        self.entered_writers.pop().close()

    @property
    def _root_writer(self) -> Any:
        if "root" not in self.open_writers:
            self.open_writers["root"] = tf.summary.create_file_writer(str(self._directory))
        return self.open_writers["root"]

    # ---- Keras' hooks ----------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.writes_train_graph = False  # Keras' way to do it finds no graph.
        if hasattr(model, "tfgpu_statistics"):
            self._statistics = StepStatistics.of(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._base = self._consumed = self._written = 0
        self._pictured = -1
        self._lengths.clear()
        self._graph_written = not self.write_graph
        super().on_train_begin(logs)
        if self._hparams is not None:
            self._write_hparams()
        counted = flops.count(self.model)
        # A part of the operations would pass for all of them.
        self._flops = counted.training if counted.forward and not counted.uncounted else None
        if self._flops is not None:
            self._peak = self._peak_of_replicas()
        self._batches = batches = getattr(self.model, "tfgpu_batches", None)
        if self.is_to_profile and batches is not None:
            # From the step before on, so that nothing is traced or compiled in the profile.
            batches.alone = range(max(0, self.first_profiled - 2), self.last_profiled)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        steps = self.params.get("steps")
        self._base = epoch * steps if steps else self._consumed
        wanted = self._write_batches == "every" or (self._write_batches and epoch == 0)
        if wanted and epoch > self._pictured:  # An epoch that is resumed has its picture.
            self._show_batch(epoch)
            self._pictured = epoch
        self._interval = self._begin_interval()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._first_of_execution = batch
        self.global_batch = self._base + batch + 1
        # For summaries that the model itself writes.
        self.pop_writer()
        self.push_writer(self.train_writer, self.global_batch)
        if self.is_to_profile:
            self._profile(self.global_batch)
        self._execution_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        now = time.perf_counter()
        done = min(batch + 1, self.params.get("steps") or batch + 1)
        length = done - self._first_of_execution
        alone = self._batches.alone if self._batches is not None else None
        if alone is not None and self._base + self._first_of_execution in alone:
            length = 0  # Another function runs these.
        self._consumed = max(self._consumed, self._base + done)
        if self._marker is not None:
            self._marker.__exit__(None, None, None)
            self._marker = None
        if self.is_profiling and self._consumed >= self.last_profiled:
            self.stop_profiler()
        if not self._graph_written:
            self._write_step_graph()
        if length not in self._lengths:
            self._lengths.add(length)
            _floats(logs)  # Waits for the device.
            self._interval = self._begin_interval()
        elif self._interval is not None:
            self._interval.steps += max(1, length)
            self._interval.executing += now - self._execution_began
        every = self.update_freq
        if every != "epoch" and self._consumed // every > self._written // every:
            self._written = self._consumed
            self._write_performance(logs)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._end_of_steps()
        super().on_test_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._end_of_steps()
        super().on_epoch_end(epoch, dict(logs or {}))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._interval = None
        self.stop_profiler()
        if self._hparams is not None:
            self._end_hparams()
        super().on_train_end(logs)

    def collect_learning_rate(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns `logs` with the learning rate of the optimizer's updates."""
        optimizer = update.inner(self.model.optimizer)
        if hasattr(optimizer, "optimizers"):  # One that hands variables to others.
            collected: dict[str, Any] = private.collect_learning_rate.function(self, logs)
            return collected
        rate = optimizer.learning_rate
        schedule = private.given_learning_rate(optimizer)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            # Of its updates: with accumulated gradients Keras asks for the rate of its calls.
            rate = schedule(optimizer.iterations)
        return logs | {"learning_rate": _number(rate)}

    # ---- performance -----------------------------------------------------------------------

    def _end_of_steps(self) -> None:
        """Writes what is left of the epoch, before the validation takes its time."""
        if self._interval is not None and self.update_freq == "epoch":
            self._write_performance(None)
        self._interval = None

    def _begin_interval(self) -> _Interval:
        examples, waited = self._examples(), self._waited()
        return _Interval(
            began=time.perf_counter(),
            examples=examples,
            input_seconds=waited,
            saving_seconds=self._saving(),
        )

    def _write_performance(self, logs: Mapping[str, Any] | None) -> None:
        """Writes a point of everything that is not an epoch's."""
        # Not left out where the times are: a resumed run has other first executions.
        point = {f"batch_{name}": (value, "") for name, value in _floats(logs).items()}
        if self._statistics is not None and self._statistics.has_norm:
            norm = _number(self._statistics.gradient_norm)
            point["training/gradient_norm"] = (norm, "Of the latest step, unclipped.")
        scale = update.loss_scale(self.model.optimizer) if self.model.optimizer else None
        if scale is not None:
            point["training/loss_scale"] = (_number(scale), "Of float16 gradients.")
        self._write_point(point | self._measured(logs))

    def _measured(self, logs: Mapping[str, Any] | None) -> dict[str, tuple[float, str]]:
        """Times of the steps since the last point, and what follows from them."""
        interval = self._interval
        if interval is None or interval.steps == 0:
            return {}
        waiting = time.perf_counter()
        _floats(logs)  # Waits for the device, so that all of its work is in the interval.
        following = self._begin_interval()
        self._interval = following
        seconds = following.began - interval.began
        executing = interval.executing + following.began - waiting
        entered = following.input_seconds - interval.input_seconds
        saved = following.saving_seconds - interval.saving_seconds
        rate = (following.examples - interval.examples) / seconds
        parts = {
            "step_milliseconds": (seconds, "Of a training step, all in all."),
            "step_milliseconds_input": (entered, "Of a step: waiting for its batch."),
            "step_milliseconds_device": (
                executing - entered,
                "Of a step: on the device, with the calls that start it.",
            ),
            "step_milliseconds_host": (
                seconds - executing - saved,
                "Of a step: Python between executions, callbacks among it.",
            ),
            "step_milliseconds_checkpoint": (saved, "Of a step: waiting for checkpoints."),
        }
        point = {
            f"performance/{name}": (max(0.0, 1e3 * spent / interval.steps), description)
            for name, (spent, description) in parts.items()
        }
        point["performance/samples_per_second"] = (rate, "Training examples a second.")
        if self._flops is not None and self._peak:
            point["performance/flops_utilization"] = (
                rate * self._flops / self._peak,
                "Of the rate that a matrix product reaches on these devices; "
                f"{self._flops / 1e6:,.2f} MFLOP an example.",
            )
        for device, gib in _memory(_local_devices(self.model)).items():
            point[f"memory/{device}"] = (gib, "GiB in use.")
        return point

    def _write_point(self, point: Mapping[str, tuple[float, str]]) -> None:
        """Writes scalars, (value, description) by tag, at once.

        One by one, each takes the time of an eager operation, and there are twenty.
        """
        summary = Summary()
        for tag, (value, description) in point.items():
            summary.value.add(
                tag=tag,
                tensor=tensor_util.make_tensor_proto(np.float32(value)),
                metadata=scalar_metadata.create_summary_metadata("", description),
            )
        with self.train_writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=self._consumed)

    def _examples(self) -> float:
        """Examples of this epoch so far; the loss weighs by them."""
        tracker = private.loss_tracker(self.model)
        if tracker is None:
            return 0.0
        # Of this worker's replicas: to ask the others for theirs they would have to ask too.
        strategy = self.model.distribute_strategy
        parts = strategy.experimental_local_results(tracker.count.value)
        return sum(map(_number, parts)) * strategy.num_replicas_in_sync / len(parts)

    def _waited(self) -> float:
        return 0.0 if self._statistics is None else float(self._statistics.input_seconds.numpy())

    def _saving(self) -> float:
        callbacks = getattr(self.model, "tfgpu_callbacks", None) or ()
        callbacks = getattr(callbacks, "callbacks", callbacks)
        if not isinstance(callbacks, list | tuple):
            callbacks = (callbacks,)
        return sum(getattr(callback, "save_seconds", 0.0) for callback in callbacks)

    def _peak_of_replicas(self) -> float:
        """FLOP/s that all replicas together could do at most."""
        strategy = self.model.distribute_strategy
        devices = _local_devices(self.model)
        peak = peak_flops(devices[0], dtype=self.model.dtype_policy.compute_dtype)
        replicas: int = strategy.num_replicas_in_sync
        if devices[0].startswith("GPU"):
            # Virtual ones share one.
            physical = len(tf.config.list_physical_devices("GPU"))
            return peak * replicas * min(1.0, physical / len(devices))
        return peak * replicas

    # ---- graph, pictures, settings, profile ------------------------------------------------

    def _write_step_graph(self) -> None:
        graph = step_graph(self.model)
        if graph is not None:
            with self.train_writer.as_default():
                tf.summary.graph(graph)
            self._graph_written = True

    def _show_batch(self, epoch: int) -> None:
        source: Any = self._batches.source if self._batches is not None else None
        if not hasattr(source, "from_step"):
            return  # Reading from data that is not ours may have effects.
        element = next(iter(source.from_step(self._base).take(1)))
        element = tf.nest.map_structure(lambda leaf: leaf[:_SHOWN], element)
        images, labels = _finished(source, element)
        if images.shape[-1] not in (1, 3):
            return
        captions = [[self._name(label)] for label in labels]
        with self.train_writer.as_default():
            tf.summary.image(
                "batch",
                pictures.grid(images, captions)[None],
                step=epoch,
                description="Images of a training batch as the network sees them, augmented.",
            )

    def show_predictions(self, dataset: tf.data.Dataset, *, step: int) -> None:
        """Writes the confusion matrix and the most confident mistakes, under `validation/`.

        Args:
            dataset: Of `tfgpu.data.inputs.evaluation_batches`, or one that yields (images, labels):
                uint8 (n, height, width, channels) and integers (n,).
            step: Of the run, or the epoch.
        """
        outputs = np.asarray(self.model.predict(dataset, verbose=0), np.float32)
        outputs -= outputs.max(axis=-1, keepdims=True)
        odds = np.exp(outputs)
        probabilities = odds / odds.sum(axis=-1, keepdims=True)
        classes = probabilities.shape[-1]
        matrix = np.zeros((classes, classes), np.int64)
        worst: list[tuple[float, int, int, int, np.ndarray]] = []
        seen = 0
        for element in dataset:
            images, labels = _finished(dataset, element)
            chances = probabilities[seen : seen + len(labels)]
            predicted = chances.argmax(axis=-1)
            np.add.at(matrix, (labels, predicted), 1)
            for i in np.flatnonzero(predicted != labels):
                mistake = (float(chances[i].max()), seen + int(i), int(labels[i]))
                entry = (*mistake, int(predicted[i]), images[i])
                (heapq.heappush if len(worst) < _SHOWN else heapq.heappushpop)(worst, entry)
            seen += len(labels)
        names = [self._name(label) for label in range(classes)]
        with self.validation_writer.as_default():
            tf.summary.image(
                "confusion_matrix",
                pictures.confusion(matrix, names)[None],
                step=step,
                description="True classes downwards, predicted ones across.",
            )
            if worst and worst[0][-1].shape[-1] in (1, 3):
                worst.sort(key=lambda entry: (-entry[0], entry[1]))
                captions = [
                    [f"is {names[true]}", f"{names[guess]} {confidence:.1%}"]
                    for confidence, _, true, guess, _ in worst
                ]
                sheet = pictures.grid(np.stack([entry[-1] for entry in worst]), captions)
                tf.summary.image(
                    "mistakes",
                    sheet[None],
                    step=step,
                    description="The mistakes the model is surest of: true class, predicted class.",
                )
        self.validation_writer.flush()

    def show_result(self, metrics: Mapping[str, float | None], *, step: int) -> None:
        """Writes final metrics, which the HParams tab shows beside the settings.

        Args:
            metrics: By name; what is None is left out.
            step: Of the run.
        """
        with self._root_writer.as_default():
            for name, value in metrics.items():
                if value is not None:
                    tf.summary.scalar(f"result/{name}", value, step=step)
        self.close_writers()

    def _name(self, label: Any) -> str:
        label = int(label)
        return str(self._class_names[label]) if label < len(self._class_names) else str(label)

    def _write_hparams(self) -> None:
        # An import of seconds that nobody else needs.
        from tensorboard.plugins.hparams import api

        assert self._hparams is not None
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in self._hparams.items()
            if value is not None
        }
        with self._root_writer.as_default():
            api.hparams(plain)

    def _end_hparams(self) -> None:
        from tensorboard.plugins.hparams import api_pb2, summary

        ended = summary.session_end_pb(api_pb2.STATUS_SUCCESS)
        with self._root_writer.as_default():
            tf.summary.experimental.write_raw_pb(ended.SerializeToString(), step=0)

    def _profile(self, step: int) -> None:
        """Starts the profiler where it is to start, and marks the step for it."""
        if not self.is_profiling and self.first_profiled <= step <= self.last_profiled:
            self.start_profiler(logdir=self.train_directory)
        if self.is_profiling:
            self._marker = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
            self._marker.__enter__()


def _floats(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Logs as Python numbers; waits until the device has them."""
    if not isinstance(logs, Mapping):
        return {}
    values = {name: tf.convert_to_tensor(value) for name, value in logs.items()}
    return {
        name: _number(value) for name, value in values.items() if value.shape.num_elements() == 1
    }


def _number(value: Any) -> float:
    """A scalar variable, tensor or number of the device, as Python's."""
    return float(tf.reshape(tf.convert_to_tensor(value), []).numpy())


def _finished(dataset: Any, element: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of an element, after what the device does with it."""
    device_map = getattr(dataset, "device_map", None)
    if device_map is not None:
        element = device_map(element, dataset.resident[0] if dataset.resident else ())
    images, labels = element[:2]
    return np.asarray(images), np.asarray(labels).reshape(-1)


def _local_devices(model: keras.Model) -> list[str]:
    if private.own_strategy(model) is not None:
        devices = model.distribute_strategy.extended.worker_devices
    else:  # The default strategy, which names none.
        devices = [d.name for d in tf.config.list_logical_devices("GPU")[:1]] or ["device:CPU:0"]
    return [device.rpartition("device:")[2] for device in devices]


def _memory(devices: Sequence[str]) -> dict[str, float]:
    """GiB in use: of each GPU by TensorFlow, of the host by this process."""
    found = {}
    for device in devices:
        if device.startswith("GPU"):
            found[device] = tf.config.experimental.get_memory_info(device)["current"] / (1 << 30)
    pages = Path("/proc/self/statm")
    if pages.exists():
        resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["host"] = resident / (1 << 30)
    return found
