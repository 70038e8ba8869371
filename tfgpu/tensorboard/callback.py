"""`tfgpu.TensorBoard`: Keras' callback, extended by performance, step graph and pictures."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
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
from tfgpu.errors import shown
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.tensorboard import predictions
from tfgpu.tensorboard.graph import step_graph
from tfgpu.tensorboard.performance import PerformanceMeter, to_float, to_floats
from tfgpu.tensorboard.pictures import Picture


class TensorBoard(private.TensorBoardHooks):
    """Writes event files that TensorBoard shows; for `tfgpu.Model.fit`, and for Keras' own.

    Tags and folders are those of `keras.callbacks.TensorBoard`: `train/` and `validation/` with
    `epoch_<metric>` by epoch, and `batch_<metric>` by batches consumed. When a
    `tfgpu.BackupAndRestore` in the same `fit` resumes a training, the files are truncated to what
    they held at the backup, so that no step is in them twice and none is missing. The names of the
    files tell them from those of other trainings, which stay as they are. It also writes

    - the graph of the training step and the conceptual graph of the model;
    - `performance/`: samples per second, the milliseconds of a step and what of them went into
      waiting for input, the device, the host and checkpoints, and how far the device is used: the
      model's FLOP/s (`tfgpu.machine.flops`) over those of a large matrix product
      (`tfgpu.machine.peak_rate`);
    - `training/gradient_norm` and `training/loss_scale`, and `memory/` in GiB;
    - with data of `tfgpu.data`, a batch as the network sees it, after augmentation.

    The first execution of each number of steps is left out of `performance/`: it includes tracing
    and compilation.

    Args:
        log_dir: Where the event files go.
        histogram_freq: Epochs between two histograms of the weights; 0 for none.
        write_graph: Whether to write the graphs.
        write_images: Whether histograms come with pictures of the weights.
        update_freq: Batches between two points of `batch_<metric>` and `performance/`; "batch" for
            every batch (every execution, if it has several steps); "epoch" for `performance/` once
            an epoch and no `batch_<metric>`.
        profile_batch: The batch, or the first and the last, to profile; counted from 1. 0 for none.
        class_names: Names of the labels, for the pictures.
        report: What draws the pictures, with methods `batch(x, y)` and `predictions(outputs)` such
            as those of `tfgpu.tasks.parts.report.Report`; None draws images and their classes.
        hparams: Settings of this training for the HParams tab: numbers, strings, booleans.
        write_batches: Whether to show a batch: of the first epoch, or of `"every"` epoch.
        monitor: Samples the hardware, for `hardware/`; None writes nothing of it.
        also: Gets the pictures too: "batch" or "predictions", pictures by tag, steps of training.
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
        report: Any = None,
        hparams: Mapping[str, Any] | None = None,
        write_batches: bool | Literal["every"] = True,
        monitor: HardwareMonitor | None = None,
        also: Callable[[str, Mapping[str, Picture], int], None] | None = None,
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
        self._report = predictions.ClassPictures(class_names) if report is None else report
        self._hparams = dict(hparams) if hparams is not None else None
        self._write_batches = write_batches
        self._monitor = monitor
        self._also = also
        self._statistics: StepStatistics | None = None
        self._performance: PerformanceMeter | None = None
        self._lengths: set[int] = set()  # Of executions that were traced.
        self._base = self._consumed = self._written = 0
        self._pictured = -1  # The last epoch whose batch was shown.
        self._first_of_execution = 0
        self._execution_began = 0.0
        self._graph_written = False
        self._marker: Any = None
        self._batches: Batches | None = None
        self._marks: list[str] = []  # Of our files' names; new ones get the last.
        self._known: set[str] = set()  # Files of ours that have none.

    def get_state(self) -> dict[str, Any]:
        """Returns the size of each of our event files in bytes, and what has been written."""
        for writer in self.open_writers.values():
            writer.flush()
        return {
            "files": {
                self._name(file): file.stat().st_size
                for file in self._event_files()
                if self._is_ours(file)
            },
            "mark": self._mark,
            "graph": self._graph_written,
            "pictured": self._pictured,
            "consumed": self._consumed,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Truncates our event files to the sizes in the state, and removes newer ones of ours."""
        # `on_train_begin` has opened a file already; the next event opens another.
        self.close_writers()
        files = self._event_files()
        if "mark" in state:
            self._marks = [self._mark, state["mark"]]
            self._known = set(state["files"])
        else:  # Of a version that did not mark its files.
            self._known = {self._name(file) for file in files}
        for file in filter(self._is_ours, files):
            size = state["files"].get(self._name(file), 0)
            if size == 0:
                file.unlink()
            elif file.stat().st_size > size:
                with open(file, "r+b") as opened:
                    opened.truncate(size)
        self._graph_written, self._pictured = state["graph"], state["pictured"]
        self._consumed = self._written = state["consumed"]

    def _name(self, file: Path) -> str:
        return file.relative_to(self._directory).as_posix()

    def _event_files(self) -> list[Path]:
        # Not those below: they are of other trainings.
        return [
            file
            for folder in (".", "train", "validation")
            for file in sorted((self._directory / folder).glob("events.out.tfevents.*"))
        ]

    def _is_ours(self, file: Path) -> bool:
        return self._name(file) in self._known or any(
            file.name.endswith(_suffix(mark)) for mark in self._marks if mark
        )

    @property
    def _mark(self) -> str:
        """What tells the files of this training from others; "" for one that is not backed up."""
        if not self._marks:
            callbacks = getattr(self.model, "tfgpu_given_callbacks", ())
            places = (getattr(callback, "backup_dir", None) for callback in callbacks)
            place = next((place for place in places if place is not None), None)
            # The same in a process that is killed before it has read the backup.
            self._marks = ["" if place is None else _digest(place)]
        return self._marks[-1]

    def writer(self, name: str, directory: str) -> Any:
        """The writer of a name, made when it is first asked for."""
        if name not in self.open_writers:
            self.open_writers[name] = tf.summary.create_file_writer(
                directory, filename_suffix=_suffix(self._mark)
            )
        return self.open_writers[name]

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
        return self.writer("root", str(self._directory))

    def set_model(self, model: keras.Model) -> None:
        self._marks, self._known = [], set()
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
        self._performance = PerformanceMeter(self.model, self._statistics)
        self._batches = batches = getattr(self.model, "tfgpu_batches", None)
        if self.is_to_profile and batches is not None:
            # From one step earlier, so that nothing is traced or compiled in the profile.
            batches.alone = range(max(0, self.first_profiled - 2), self.last_profiled)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        steps = self.params.get("steps")
        self._base = epoch * steps if steps else self._consumed
        wanted = self._write_batches == "every" or (self._write_batches and epoch == 0)
        if wanted and epoch > self._pictured:  # A resumed epoch has its picture already.
            self._show_batch(epoch)
            self._pictured = epoch
        if self._performance is not None:
            self._performance.begin()

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
            length = 0  # Steps that are run alone have a function of their own.
        self._consumed = max(self._consumed, self._base + done)
        if self._marker is not None:
            self._marker.__exit__(None, None, None)
            self._marker = None
        if self.is_profiling and self._consumed >= self.last_profiled:
            self.stop_profiler()
        if not self._graph_written:
            self._write_step_graph()
        assert self._performance is not None
        if length in self._lengths:
            self._performance.add(steps=max(1, length), seconds=now - self._execution_began)
        else:
            self._lengths.add(length)
            to_floats(logs)  # Waits for the device.
            self._performance.begin()
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
        if self._performance is not None:
            self._performance.end()
        self.stop_profiler()
        if self._hparams is not None:
            self._end_hparams()
        super().on_train_end(logs)

    def collect_learning_rate(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns `logs` with the learning rate of the optimizer's updates."""
        optimizer = update.inner(self.model.optimizer)
        if hasattr(optimizer, "optimizers"):  # One that delegates to others.
            collected: dict[str, Any] = private.collect_learning_rate.function(self, logs)
            return collected
        rate = optimizer.learning_rate
        schedule = private.given_learning_rate(optimizer)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            # By its updates: with gradient accumulation, Keras would count its calls.
            rate = schedule(optimizer.iterations)
        return logs | {"learning_rate": to_float(rate)}

    def _end_of_steps(self) -> None:
        """Writes the rest of the epoch's performance, before validation begins."""
        if self._performance is not None:
            if self.update_freq == "epoch" and self._performance.measuring:
                self._write_performance(None)
            self._performance.end()

    def _write_performance(self, logs: Mapping[str, Any] | None) -> None:
        """Writes a point of everything that is not written by epoch."""
        # Also after a first execution, whose times are left out: a resumed run has others.
        point = {f"batch_{name}": (value, "") for name, value in to_floats(logs).items()}
        if self._statistics is not None and self._statistics.has_norm:
            norm = to_float(self._statistics.gradient_norm)
            point["training/gradient_norm"] = (norm, "Of the latest step, unclipped.")
        scale = update.loss_scale(self.model.optimizer) if self.model.optimizer else None
        if scale is not None:
            point["training/loss_scale"] = (to_float(scale), "Of float16 gradients.")
        assert self._performance is not None
        sampled = self._monitor.point() if self._monitor is not None else {}
        self._write_point(point | self._performance.measure(logs) | sampled)

    def _write_point(self, point: Mapping[str, tuple[float, str]]) -> None:
        """Writes scalars, (value, description) by tag, with one operation.

        There are twenty, and each would cost an eager operation.
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

    def _write_step_graph(self) -> None:
        graph = step_graph(self.model)
        if graph is not None:
            with self.train_writer.as_default():
                tf.summary.graph(graph)
            self._graph_written = True

    def _show_batch(self, epoch: int) -> None:
        source: Any = self._batches.source if self._batches is not None else None
        shown = predictions.pictures_of_batch(self._report, source, step=self._base)
        with self.train_writer.as_default():
            _write_pictures(shown, step=epoch)
        if self._also is not None:
            self._also("batch", shown, self._base)

    def show_predictions(self, dataset: tf.data.Dataset, *, step: int) -> None:
        """Writes what the model makes of a data set, under `validation/`.

        Args:
            dataset: Of `tfgpu.data.inputs.evaluation_batches`, or one that yields (x, y), such as
                uint8 (n, height, width, channels) and integers (n,).
            step: Of the run, or the epoch.
        """
        shown = predictions.pictures_of(self._report, self.model, dataset)
        with self.validation_writer.as_default():
            _write_pictures(shown, step=step)
        self.validation_writer.flush()
        if self._also is not None:
            self._also("predictions", shown, step)

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

    def _write_hparams(self) -> None:
        # Not at the top: importing it takes seconds.
        from tensorboard.plugins.hparams import api

        assert self._hparams is not None
        plain = {
            # A path need not be text.
            name: value if isinstance(value, bool | int | float) else shown(str(value), line=False)
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
        """Starts the profiler at the first step to profile, and marks each step for it."""
        if not self.is_profiling and self.first_profiled <= step <= self.last_profiled:
            self.start_profiler(logdir=self.train_directory)
        if self.is_profiling:
            self._marker = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
            self._marker.__enter__()


def _suffix(mark: str) -> str:
    """What the names of event files end with: TensorFlow's own, and a mark before it."""
    return f".{mark}.v2" if mark else ".v2"


def _digest(place: Any) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(place))).hexdigest()[:8]


def _write_pictures(pictures: Mapping[str, Picture], *, step: int) -> None:
    for tag, picture in pictures.items():
        if isinstance(picture.content, str):
            tf.summary.text(tag, picture.content, step=step, description=picture.description)
        else:
            content = picture.content[None]
            tf.summary.image(tag, content, step=step, description=picture.description)
