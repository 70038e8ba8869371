import io
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfgpu.cli.console import Console, Stopwatch, duration, summary
from tfgpu.errors import RequestError
from tfgpu.train.progress import (
    CALLBACKS,
    FIRST,
    INPUT,
    OTHER,
    TRAINING,
    VALIDATION,
    Progress,
    Timing,
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Slow:
    """A value on a device that is still working on it."""

    def __init__(self, clock, seconds, value=1.0):
        self.clock, self.seconds, self.value = clock, seconds, value

    def __float__(self):
        self.clock.now += self.seconds
        self.seconds = 0
        return self.value


def console(progress="plain"):
    return Console(progress=progress, file=io.StringIO())


def shown(console):
    return console.rich.file.getvalue()


def epoch(clock, callbacks, executions, *, number=0, input_=0.0, validation=None, others=0.0):
    """What fit calls in an epoch; `executions` are (begin, end, seconds, logs)."""
    first, *_, last = callbacks
    for callback in callbacks:
        callback.on_epoch_begin(number)
    for begin, end, seconds, logs in executions:
        clock.now += input_
        for callback in callbacks:
            callback.on_train_batch_begin(begin)
        clock.now += seconds
        for callback in callbacks:
            if callback is last:
                clock.now += others
            callback.on_train_batch_end(end, logs)
    if validation is not None:
        for callback in callbacks:
            callback.on_test_begin()
        clock.now += validation
        for callback in callbacks:
            callback.on_test_end()
    for callback in callbacks:
        callback.on_epoch_end(number, {"loss": 0.5, "val_loss": 0.6, "accuracy": 0.9})


def timing(clock, *, batch=10, examples=95, steps=10):
    made = Timing(global_batch=batch, examples=examples, steps_per_epoch=steps, clock=clock)
    made.on_train_begin()
    return made


def test_a_stopwatch_charges_every_second_once():
    clock = Clock()
    watch = Stopwatch(phase="a", clock=clock)
    clock.now += 1
    with watch.during("b"):
        clock.now += 2
    clock.now += 4
    watch.switch("c")
    clock.now += 8
    assert watch.seconds == {"a": 5.0, "b": 2.0}
    assert watch.total == 15.0


def test_a_stopwatch_goes_back_after_an_error():
    watch = Stopwatch(phase="a", clock=Clock())
    with pytest.raises(KeyError), watch.during("b"):
        raise KeyError
    assert watch.phase == "a"


def test_each_thing_is_timed_apart():
    clock = Clock()
    made = timing(clock)
    executions = [(0, 4, 30.0, {}), (5, 9, 2.0, {})]
    epoch(clock, [made, made.closing], executions, input_=1.0, validation=7.0, others=0.5)
    spent = {name: seconds for name, seconds in made.stopwatch.seconds.items() if seconds}
    assert spent == {FIRST: 31.0, TRAINING: 2.0, INPUT: 1.0, VALIDATION: 7.0, CALLBACKS: 1.0}
    assert made.train_seconds == 34.0
    assert made.epoch_seconds == 42.0


def test_speed_leaves_out_first_executions_and_padding():
    clock = Clock()
    made = timing(clock)  # The last batch holds 5 of 10.
    epoch(clock, [made, made.closing], [(0, 4, 30.0, {}), (5, 9, 2.0, {})], validation=7.0)
    assert made.samples_per_second == 45 / 2.0
    assert made.run_samples_per_second == 45 / 2.0


def test_a_shorter_last_execution_is_a_first_one():
    clock = Clock()
    made = timing(clock)
    # Keras says step 11 for the end of an execution of 4 that has 2 steps left.
    executions = [(0, 3, 30.0, {}), (4, 7, 2.0, {}), (8, 11, 20.0, {})]
    epoch(clock, [made, made.closing], executions)
    assert made.stopwatch.seconds[FIRST] == 50.0
    assert made.run_samples_per_second == 40 / 2.0
    assert made.steps_done == 10


def test_without_a_second_execution_there_is_no_speed():
    clock = Clock()
    made = timing(clock)
    epoch(clock, [made, made.closing], [(0, 9, 30.0, {})])
    assert made.samples_per_second is None
    assert made.run_samples_per_second is None
    assert made.train_seconds == 30.0


def test_speed_of_an_epoch_is_its_own():
    clock = Clock()
    made = timing(clock, examples=100)
    for number, seconds in enumerate((30.0, 2.0, 4.0)):
        epoch(clock, [made, made.closing], [(0, 9, seconds, {})], number=number)
    assert made.samples_per_second == 100 / 4.0
    assert made.run_samples_per_second == 200 / 6.0


def test_the_device_is_not_waited_for_at_each_execution():
    clock = Clock()
    made = timing(clock, examples=1000, steps=100)
    reads = []

    class Counted:
        def __float__(self):
            reads.append(clock.now)
            return 1.0

    executions = [(step, step, 0.01, {"loss": Counted()}) for step in range(100)]
    epoch(clock, [made, made.closing], executions)
    # One second: the first, the last, and four a second.
    assert len(reads) <= 6


def test_work_under_way_at_the_end_of_an_epoch_is_training():
    clock = Clock()
    made = timing(clock, steps=10, examples=100)
    epoch(clock, [made, made.closing], [(0, 4, 1.0, {})])
    executions = [(0, 4, 0.01, {"loss": Slow(clock, 3.0)})]  # Stopped in the middle.
    epoch(clock, [made, made.closing], executions, number=1, validation=1.0)
    assert made.stopwatch.seconds[TRAINING] == pytest.approx(3.01)
    assert made.stopwatch.seconds[VALIDATION] == pytest.approx(1.0)


def test_work_under_way_before_a_checkpoint_is_training():
    clock = Clock()
    made = timing(clock, steps=10, examples=100)
    epoch(clock, [made, made.closing], [(0, 4, 1.0, {})])
    made.on_epoch_begin(1)
    made.closing.on_epoch_begin(1)
    made.on_train_batch_begin(0)
    made.closing.on_train_batch_begin(0)
    clock.now += 0.01
    made.on_train_batch_end(4, {"loss": Slow(clock, 3.0)})
    with made.apart("checkpoints"):
        clock.now += 2.0
    assert made.stopwatch.seconds["checkpoints"] == 2.0
    assert made.stopwatch.seconds[TRAINING] == pytest.approx(3.01)


def fit(callbacks, made, **kwargs):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=3, jit_compile=False)
    x, y = np.ones((40, 4), "float32"), np.ones((40, 1), "float32")
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=2,
        verbose=0,
        validation_data=(x, y),
        callbacks=[made, *callbacks, made.closing],
        **kwargs,
    )


def test_with_keras_the_phases_add_up():
    made = Timing(global_batch=4, examples=40, steps_per_epoch=10)
    fit([], made)
    made.stopwatch.switch(OTHER)
    assert sum(made.stopwatch.seconds.values()) == pytest.approx(made.stopwatch.total, rel=0.05)
    assert made.steps_done == 10
    assert made.run_samples_per_second > 0
    assert set(made.latest) == {"loss"}


@pytest.mark.parametrize("mode", ["plain", "none", "bar"])
def test_with_keras_each_epoch_is_a_line(mode):
    out = console(mode)
    log = []
    out.log_to(log.append)
    made = Timing(global_batch=4, examples=40, steps_per_epoch=10)
    with Progress(console=out, timing=made, epochs=2) as progress:
        fit([progress], made)
    epochs = [line for line in log if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert all("val_loss" in line and "samples/s" in line for line in epochs)
    assert all((line in shown(out)) == (mode != "none") for line in epochs)


def test_plain_lines_come_within_a_long_epoch():
    clock = Clock()
    out = console()
    made = timing(clock, examples=100)
    progress = Progress(console=out, timing=made, epochs=1, clock=clock)
    progress.on_train_begin()
    executions = [(step, step, 4.0, {"loss": 1.5}) for step in range(10)]
    epoch(clock, [made, progress, made.closing], executions)
    assert shown(out).splitlines() == [
        "compiling the training step",
        "epoch 1/1  step 3/10  loss 1.5000  2 samples/s  28.0 s left",
        "epoch 1/1  step 6/10  loss 1.5000  2 samples/s  16.0 s left",
        "epoch 1/1  step 9/10  loss 1.5000  2 samples/s  4.0 s left",
        "epoch 1/1  loss 0.5000  accuracy 0.9000  val_loss 0.6000  2 samples/s  40.0 s",
    ]


def test_steps_never_pass_the_end():
    clock = Clock()
    out = console("bar")
    made = timing(clock, examples=100)
    with Progress(console=out, timing=made, epochs=1, clock=clock) as progress:
        progress.on_train_begin()
        epoch(clock, [made, progress, made.closing], [(0, 6, 1.0, {}), (7, 13, 1.0, {})])
        assert progress._bar.tasks[0].completed == 10


def test_messages_from_before_the_log_reach_it():
    out, log = console(), []
    out.say("early [not markup]")
    out.log_to(log.append)
    out.say("late")
    assert log == ["early [not markup]", "late"]
    assert shown(out) == "early [not markup]\nlate\n"


def test_long_lines_stay_whole():
    out = console()
    out.say("x" * 500)
    assert shown(out) == "x" * 500 + "\n"


def test_progress_is_one_of_four():
    with pytest.raises(RequestError, match="'loud'.*auto, bar, plain, none"):
        Console(progress="loud")


def test_a_pipe_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # As notebooks and CI have it.
    assert console("auto").mode == "plain"


@pytest.mark.parametrize(("variables", "mode"), [({}, "bar"), ({"JPY_PARENT_PID": "1"}, "plain")])
def test_a_terminal_gets_a_bar_and_a_notebook_lines(monkeypatch, variables, mode):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    for name, value in {"TERM": "xterm-color", **variables}.items():
        monkeypatch.setenv(name, value)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert Console(progress="auto", file=terminal).mode == mode


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_an_interrupt_gives_the_cursor_back():
    """On a real terminal: what is hidden is shown again, whatever ends training."""
    program = """
import sys
from unittest import mock
# The callbacks need Keras for nothing but their base class.
sys.modules["keras"] = mock.Mock(callbacks=mock.Mock(Callback=object))
from tfgpu.cli.console import Console
from tfgpu.train.progress import Progress, Timing
console = Console()
assert console.mode == "bar", console.mode
timing = Timing(global_batch=1, examples=1, steps_per_epoch=1)
with Progress(console=console, timing=timing, epochs=1) as progress:
    progress.on_train_begin()
    raise KeyboardInterrupt
"""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("JPY_PARENT_PID", None)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux's way to say that the other end is closed.
                break
            if not part:
                break
            said += part
        process.wait(timeout=60)
    os.close(ours)
    hidden, visible = b"\x1b[?25l", b"\x1b[?25h"
    assert hidden in said
    assert said.rindex(visible) > said.rindex(hidden)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.421, "0.42 s"), (12.34, "12.3 s"), (185, "3 min 05 s"), (3599.6, "1 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_summary(tmp_path):
    run = tmp_path / "a run"
    (run / "tensorboard").mkdir(parents=True)
    result = {
        "test_accuracy": 0.98611,
        "test_loss": 0.05,
        "epochs": 15,
        "steps": 330,
        "samples_per_second": 6543.2,
    }
    lines = summary(result, where={"training": 30.0, "start-up": 10.0}, run_dir=run).splitlines()
    assert lines[0] == "test accuracy 0.9861, loss 0.0500, after 15 epochs, 330 steps"
    assert lines[1].startswith("6,543 samples/s")
    assert [line.split() for line in lines[3:5]] == [
        ["training", "30.0", "s", "75%"],
        ["start-up", "10.0", "s", "25%"],
    ]
    assert lines[-1] == f"look at it: tensorboard --logdir '{run}/tensorboard'"


def test_summary_of_little(tmp_path):
    assert summary({}, where={}, run_dir=tmp_path) == f"everything is in {tmp_path}"
