"""Keras callbacks that time a training run and show how far it is.

They go around all others: `[timing, progress, *others, timing.closing]`. `Timing` is the one
place that waits for the device, at most four times a second but for the boundaries it measures;
everything else takes the numbers that it read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import keras
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from tfgpu.cli.console import Console, Stopwatch, duration

# Seconds between two looks at the device's numbers. A look waits until the device has done all
# that it was given; a person reads no faster.
_LOOK_EVERY = 0.25
# Seconds between two drawings of the bar.
_DRAW_EVERY = 0.1
# Seconds between two plain lines within an epoch.
_LINE_EVERY = 10.0

FIRST = "compilation, first execution"
TRAINING = "training"
INPUT = "waiting for input"
VALIDATION = "validation"
CALLBACKS = "callbacks"
OTHER = "other"


class Timing(keras.callbacks.Callback):
    """Measures training executions apart from all that stands between them.

    Time is charged to the phases `FIRST`, `TRAINING`, `INPUT`, `VALIDATION`, `CALLBACKS` and
    `OTHER` of a `Stopwatch`. `FIRST` is the first execution of each number of steps, with the
    first wait for input: TensorFlow may trace, and XLA compile, for each anew, such as for the
    shorter last execution of an epoch.

    A GPU works on while Python goes ahead, so the device is waited for where a boundary has to
    be right: around a first execution, at the end of an epoch's steps, and in `apart`.

    Attributes:
        stopwatch: Where the time went.
        closing: The callback to put last.
        latest: The logs last read from the device, as Python floats.
        steps_per_epoch: Steps in an epoch.
        steps_done: Steps of the current epoch done.
        samples_per_second: Of the current epoch, or of the last one when none is going on; None
            while it has had first executions alone.
        epoch_seconds: Wall time of the last finished epoch, with its validation.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        examples: int,
        steps_per_epoch: int,
        stopwatch: Stopwatch | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Makes the callback.

        Args:
            global_batch: Examples in a step over all replicas.
            examples: In an epoch, whose last batch may be smaller than the others.
            steps_per_epoch: Steps in an epoch.
            stopwatch: Where to charge the time; a new one by default.
            clock: Gives seconds.
        """
        super().__init__()
        self.stopwatch = stopwatch or Stopwatch(phase=OTHER, clock=clock)
        self.closing = _Closing(self)
        self.latest: dict[str, float] = {}
        self.steps_per_epoch = steps_per_epoch
        self.steps_done = 0
        self.samples_per_second: float | None = None
        self.epoch_seconds = 0.0
        self._clock = clock
        self._global_batch = global_batch
        self._examples = examples
        self._begin = 0
        self._seen: set[int] = set()
        self._unread: Mapping[str, Any] | None = None
        self._looked = clock()
        self._epoch_started = clock()
        self._before: dict[str, float] = {}
        # Samples of executions that are not first ones; and, where the current epoch began, they
        # and their seconds.
        self._samples = 0
        self._epoch_base = (0, 0.0)
        # Of the processes before this one, when the run was resumed.
        self._earlier = {"train_seconds": 0.0, "steady_seconds": 0.0, "samples": 0}

    def get_state(self) -> dict[str, Any]:
        """Returns the times until now, for a run that is resumed."""
        return {
            "train_seconds": self.train_seconds,
            "steady_seconds": self._earlier["steady_seconds"] + self._steady_seconds,
            "samples": self._earlier["samples"] + self._samples,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Counts on from what `get_state` returned."""
        self._earlier = dict(state)

    @property
    def train_seconds(self) -> float:
        """Seconds of all training executions and the input they waited for, first ones included."""
        return self._earlier["train_seconds"] + self._spent(FIRST) + self._steady_seconds

    @property
    def run_samples_per_second(self) -> float | None:
        """Samples per second over the whole run, without first executions.

        None when there were none but those.
        """
        seconds = self._earlier["steady_seconds"] + self._steady_seconds
        samples = self._earlier["samples"] + self._samples
        return samples / seconds if samples and seconds > 0 else None

    @property
    def _steady_seconds(self) -> float:
        return self._spent(TRAINING) + self._spent(INPUT)

    def _spent(self, phase: str) -> float:
        """Seconds charged to a phase since this training began."""
        return self.stopwatch.seconds.get(phase, 0.0) - self._before.get(phase, 0.0)

    @contextlib.contextmanager
    def apart(self, phase: str) -> Iterator[None]:
        """Charges what a callback does, such as a checkpoint, to a phase of its own.

        It first waits for the device, whose unfinished steps are training and not that phase.
        """
        before = self.stopwatch.phase
        self._settle()
        self.stopwatch.switch(phase)
        try:
            yield
        finally:
            self.stopwatch.switch(before)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._before = dict(self.stopwatch.seconds)
        self.stopwatch.switch(OTHER)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.stopwatch.switch(CALLBACKS)
        self._epoch_started = self._clock()
        self._epoch_base = (self._samples, self._steady_seconds)
        self.steps_done = 0
        self.samples_per_second = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        waited = self.stopwatch.switch(CALLBACKS)
        if not self._seen:
            # It fills pipelines, once.
            self.stopwatch.move(waited, source=INPUT, target=FIRST)
        elif self.steps_per_epoch - batch < max(self._seen):
            # A shorter execution: perhaps a first one, which the steps under way are no part of.
            self._settle()
            self.stopwatch.switch(CALLBACKS)
        self._begin = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        # Keras counts to the end of a whole execution, past the end of the epoch.
        end = min(batch, self.steps_per_epoch - 1)
        steps = end - self._begin + 1
        first = steps not in self._seen
        self._unread = logs
        looks = first or end == self.steps_per_epoch - 1
        if looks or self._clock() - self._looked >= _LOOK_EVERY:
            looks = True
            self._look()
        spent = self.stopwatch.switch(CALLBACKS)
        if first:
            self._seen.add(steps)
            self.stopwatch.move(spent, source=TRAINING, target=FIRST)
        else:
            begins = self._begin * self._global_batch
            ends = min((end + 1) * self._global_batch, self._examples)
            self._samples += max(0, ends - begins)
        self.steps_done = end + 1
        if looks:
            self._measure()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._settle()
        self._measure()
        self.stopwatch.switch(VALIDATION)

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.stopwatch.switch(CALLBACKS)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._settle()
        self._measure()
        self.stopwatch.switch(CALLBACKS)
        self.epoch_seconds = self._clock() - self._epoch_started

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.stopwatch.switch(CALLBACKS)

    def _settle(self) -> None:
        """Waits for steps that are still under way, as a part of training."""
        if self._unread is not None:
            self.stopwatch.switch(TRAINING)
            self._look()

    def _look(self) -> None:
        """Reads the logs last given, which waits until the device has made them."""
        logs, self._unread = self._unread, None
        if logs:
            self.latest = _floats(logs)
        self._looked = self._clock()

    def _measure(self) -> None:
        samples = self._samples - self._epoch_base[0]
        seconds = self._steady_seconds - self._epoch_base[1]
        if samples and seconds > 0:
            self.samples_per_second = samples / seconds


class _Closing(keras.callbacks.Callback):
    """Marks where the other callbacks are through."""

    def __init__(self, timing: Timing):
        super().__init__()
        self._stopwatch = timing.stopwatch

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(INPUT)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(TRAINING)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(INPUT)

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(OTHER)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(OTHER)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._stopwatch.switch(OTHER)


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, metrics, speed and time left, as the console's mode has it.

    It stands right after its `Timing`. Use it as a context manager around `fit`: whatever ends
    training, the terminal gets its cursor back.
    """

    def __init__(
        self,
        *,
        console: Console,
        timing: Timing,
        epochs: int,
        initial_epoch: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Makes the callback.

        Args:
            console: Where to show it.
            timing: The callback before this one.
            epochs: The epoch to end with, as `fit` takes it.
            initial_epoch: Epochs done before.
            clock: Gives seconds.
        """
        super().__init__()
        self._console = console
        self._timing = timing
        self._epochs = epochs
        self._epoch = initial_epoch
        self._clock = clock
        self._bar: Bar | None = None
        self._shown = clock()
        # When the first execution had ended and the steps done by then: compilation says nothing
        # about the time left.
        self._reference: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal and shows the cursor again."""
        bar, self._bar = self._bar, None
        if bar is not None:
            self._console.live = False
            bar.stop()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._console.mode == "bar":
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                console=self._console.rich,
                # Finished epochs stay as lines; the bar itself goes.
                transient=True,
                refresh_per_second=4,
            )
            self._bar.add_task("", total=self._timing.steps_per_epoch, text="compiling")
            self._console.live = True
            self._bar.start()
        else:
            self._console.progress_line("compiling the training step")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=0, description=self._title())
        self._shown = self._clock()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        now = self._clock()
        first = self._reference is None
        if first:
            self._reference = (now, self._steps())
        if self._bar is not None:
            if first or now - self._shown >= _DRAW_EVERY:
                self._shown = now
                self._draw("compiled" if first else self._state(self._timing.latest))
        elif now - self._shown >= _LINE_EVERY and (
            self._timing.steps_done < self._timing.steps_per_epoch  # Its own line comes.
        ):
            self._shown = now
            step = f"step {self._timing.steps_done}/{self._timing.steps_per_epoch}"
            self._console.progress_line(
                f"{self._title()}  {step}  {self._state(self._timing.latest)}"
            )

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._bar is not None:
            self._draw("validating")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        state = self._state(_floats(logs or {}), seconds=self._timing.epoch_seconds)
        self._console.progress_line(f"{self._title()}  {state}")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.close()

    def _steps(self) -> int:
        """Steps done since epoch 0."""
        return self._epoch * self._timing.steps_per_epoch + self._timing.steps_done

    def _title(self) -> str:
        return f"epoch {self._epoch + 1:>{len(str(self._epochs))}}/{self._epochs}"

    def _draw(self, text: str) -> None:
        assert self._bar is not None
        done, total = self._timing.steps_done, self._timing.steps_per_epoch
        self._bar.update(
            self._bar.task_ids[0],
            completed=done,
            description=self._title(),
            text=f"{done}/{total}  {text}",
        )

    def _state(self, values: Mapping[str, float], seconds: float | None = None) -> str:
        """Metrics, speed, and the time taken or left."""
        parts = [
            f"{name} {values[name]:.4f}"
            # Loss first, then training's metrics, then validation's.
            for name in sorted(
                values, key=lambda name: (name.startswith("val_"), not name.endswith("loss"))
            )
        ]
        if self._timing.samples_per_second is not None:
            parts.append(f"{self._timing.samples_per_second:,.0f} samples/s")
        if seconds is not None:
            parts.append(duration(seconds))
        left = self._left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _left(self) -> float | None:
        """Seconds until the end, at the pace so far; None when there is none or nothing left."""
        if self._reference is None:
            return None
        since, before = self._reference
        done = self._steps()
        left = self._epochs * self._timing.steps_per_epoch - done
        if done <= before or left <= 0:
            return None
        return (self._clock() - since) / (done - before) * left


def _floats(logs: Mapping[str, Any]) -> dict[str, float]:
    """The logs that are numbers, as Python floats; tensors are waited for."""
    values = {}
    for name, value in logs.items():
        with contextlib.suppress(TypeError, ValueError):
            values[name] = float(value)
    return values
