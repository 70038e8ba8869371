"""What a command says on standard output, and where its time goes; no TensorFlow here.

Everything that is said also goes to the run's log.txt, once there is one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import rich.console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from tfgpu.errors import RequestError

Mode = Literal["bar", "plain", "none"]


class Console:
    """Standard output, repeated in a log.

    Attributes:
        mode: How progress is shown: a live bar, plain lines, or not at all. Messages are shown
            in every mode.
        rich: The console of `rich` behind it, for live displays.
        live: Whether such a display is on the terminal now.
    """

    def __init__(self, *, progress: str = "auto", file: Any = None):
        """Makes a console.

        Args:
            progress: "bar", "plain", "none", or "auto": the bar on a terminal, else plain lines.
            file: Where to write; standard output by default.

        Raises:
            RequestError: `progress` is none of these.
        """
        # As the text stands: rich would colour numbers, take [x] for markup, and break lines.
        self.rich = rich.console.Console(
            file=file,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self.mode: Mode
        if progress == "auto":
            self.mode = "bar" if _can_be_overwritten(self.rich) else "plain"
        elif progress == "bar":
            self.mode = "bar"
        elif progress == "plain":
            self.mode = "plain"
        elif progress == "none":
            self.mode = "none"
        else:
            raise RequestError(f"progress {progress!r} is none of auto, bar, plain, none")
        self.live = False
        self._log: Callable[[str], None] | None = None
        self._unlogged: list[str] = []

    def log_to(self, log: Callable[[str], None] | None) -> None:
        """Repeats all that was and will be said to `log`, such as `RunDirectory.log`.

        Args:
            log: Takes lines of plain text; None stops.
        """
        self._log = log
        if log is not None:
            for text in self._unlogged:
                log(text)
            self._unlogged.clear()

    def say(self, text: str) -> None:
        """Prints lines, above the live bar when there is one.

        Args:
            text: Plain text, without a newline at its end.
        """
        if self.live:
            self.rich.print(text)
        else:
            # Not through rich, which turns a closed pipe into an exit of its own.
            self.rich.file.write(text + "\n")
            # A pipe is read while the run goes on.
            self.rich.file.flush()
        self._to_log(text)

    def progress_line(self, text: str) -> None:
        """Prints a line of progress; with `none` nothing is shown, and log.txt still has it."""
        if self.mode == "none":
            self._to_log(text)
        else:
            self.say(text)

    def _to_log(self, text: str) -> None:
        if self._log is None:
            self._unlogged.append(text)
        else:
            self._log(text)


def _can_be_overwritten(console: rich.console.Console) -> bool:
    """Whether a bar can be drawn where the console writes: on a terminal that is one."""
    # Jupyter gives a command behind `!` a pseudo-terminal, and shows what it writes without ever
    # erasing a line or going back to one.
    notebook = "JPY_PARENT_PID" in os.environ
    # Not rich's `is_terminal`: FORCE_COLOR, which notebooks and CI set, makes that true of pipes.
    return console.file.isatty() and not console.is_dumb_terminal and not notebook


class Stopwatch:
    """Charges every second of a run to one thing and one only.

    Attributes:
        seconds: Time by what it went into, in the order of first use; what runs now is not in
            it before the next `switch`.
    """

    def __init__(self, *, phase: str = "start-up", clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._phase = phase
        self._since = clock()

    @property
    def phase(self) -> str:
        """What time is charged to now."""
        return self._phase

    def switch(self, phase: str) -> float:
        """Charges the time since the last switch, and from now on charges `phase`.

        Returns:
            The seconds charged.
        """
        now = self._clock()
        spent = now - self._since
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + spent
        self._phase, self._since = phase, now
        return spent

    def move(self, seconds: float, *, source: str, target: str) -> None:
        """Charges to `target` what was charged to `source`."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Charges `phase` inside the `with`, and afterwards what was charged before it."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return sum(self.seconds.values()) + self._clock() - self._since


class Countdown:
    """Says how far a list of jobs is, and how long the rest takes.

    The rest is taken to need its expected time, scaled by how long the jobs so far took against
    theirs. A bar on a terminal, else a line a job.
    """

    def __init__(
        self,
        console: Console,
        expected: Sequence[float],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Makes it; use it as a context.

        Args:
            console: Where to say it.
            expected: Seconds each job may take, in order.
            clock: Gives seconds.
        """
        self._console = console
        self._expected = list(expected)
        self._done = 0
        self._clock = clock
        self._started = clock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Countdown:
        self._started = self._clock()
        if self._console.mode == "bar":
            self._bar = Bar(
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=self._console.rich,
                transient=True,
            )
            self._task = self._bar.add_task("", total=sum(self._expected))
            self._bar.start()
            self._console.live = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._console.live = False
            self._bar.stop()

    @property
    def left(self) -> float:
        """Seconds that the jobs not yet done are going to take."""
        done, rest = self._expected[: self._done], self._expected[self._done :]
        pace = (self._clock() - self._started) / sum(done) if done and sum(done) else 1.0
        return pace * sum(rest)

    def begin(self, what: str) -> None:
        """Says what the next job is."""
        if self._bar is not None and self._task is not None:
            number = f"{self._done + 1}/{len(self._expected)}"
            text = f"{number}  {what}  {duration(self.left)} left"
            self._bar.update(self._task, description=text)

    def end(self, what: str) -> None:
        """Says that a job is done, and how it went."""
        self._done += 1
        number = f"{self._done}/{len(self._expected)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=sum(self._expected[: self._done]))
        else:
            self._console.progress_line(f"{number}  {what}  {duration(self.left)} left")


def duration(seconds: float) -> str:
    """A time for people: "0.42 s", "12.3 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _hardware(found: Any) -> str:
    """How GPUs were used and what energy it took; "" where nothing is known of either."""
    if not isinstance(found, Mapping):
        return ""
    means = {each["figure"]: each["mean"] for each in found["figures"]}
    said = [
        f"GPU {name[3:].partition('_')[0]} in use {mean:.0f} % of the time"
        for name, mean in means.items()
        if name.startswith("gpu") and name.endswith("_utilization")
    ]
    if found["energy_joules"] is not None:
        said.append(f"{found['energy_joules']:,.0f} J of energy")
    return ", ".join(said)


def summary(
    result: Mapping[str, Any], *, where: Mapping[str, float], run_dir: str | os.PathLike[str]
) -> str:
    """The closing lines of a run.

    Args:
        result: The fields of result.json; what is absent or None is left out.
        where: Seconds by what they went into, such as `Stopwatch.seconds`.
        run_dir: The run directory.

    Returns:
        Lines without a newline at the end.
    """
    lines = []
    tested = {
        name.removeprefix("test_"): value
        for name, value in result.items()
        if name.startswith("test_") and isinstance(value, float)
    }
    if tested:
        names = sorted(tested, key=lambda name: name == "loss")  # Metrics first.
        line = "test " + ", ".join(f"{name} {tested[name]:.4f}" for name in names)
        done = [
            f"{count} {unit}{'' if count == 1 else 's'}"
            for unit in ("epoch", "step")
            if (count := result.get(f"{unit}s"))
        ]
        lines.append(line + (f", after {', '.join(done)}" if done else ""))
    speed = result.get("samples_per_second")
    if speed is not None:
        lines.append(
            f"{speed:,.0f} samples/s in training steps (without compilation, the first "
            "execution, validation, checkpoints)"
        )
    used = _hardware(result.get("hardware"))
    if used:
        lines.append(used)
    spent = {name: seconds for name, seconds in where.items() if seconds >= 0.005}
    total = sum(where.values())
    if spent:
        lines.append(f"where the time went, {duration(total)} in all:")
        wide = max(map(len, spent))
        shown = {name: duration(seconds) for name, seconds in spent.items()}
        right = max(map(len, shown.values()))
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<{wide}}  {shown[name]:>{right}}  {seconds / total:4.0%}")
    lines.append(f"everything is in {os.fspath(run_dir)}")
    events = Path(run_dir) / "tensorboard"
    if events.is_dir():
        lines.append(f"look at it: tensorboard --logdir {shlex.quote(str(events))}")
    return "\n".join(lines)
