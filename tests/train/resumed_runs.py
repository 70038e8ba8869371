"""Runs that are killed and started again, and what has to be the same in them."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
import trained_runs
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import tfgpu

MODEL = """
import keras
import tfgpu


def small(*, image_shape, num_classes):
    layers = keras.layers
    inputs = keras.Input(image_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dense(num_classes)(x)
    return tfgpu.Model(inputs, layers.Activation("linear", dtype="float32")(x))
"""

# 54 of 60 images to train on: 7 batches, the last of 6. Executions of 3 steps, cut at every
# second one by the checkpoints.
BASE = {
    "dataset": "folder:images",
    "model": "resume_models:small",
    "devices": "CPU:0",
    "batch_size": "8",
    "epochs": "4",
    "learning_rate": "0.05",
    "augment": "crop,flip",
    "steps_per_execution": "3",
    "checkpoint_every": "2",
    "early_stopping": "100",
    "progress": "plain",
}
CASES = {
    "one device, resident": {"input": "resident", "gradient_accumulation_steps": "3"},
    "mirrored, streaming": {
        "devices": None,
        "virtual_devices": "2",
        "input": "streaming",
        "optimizer": "adamw",
    },
    "float16, average": {"precision": "mixed_float16", "ema_momentum": "0.9", "clip_norm": "1"},
}


def argv_of(settings):
    return [f"--{name}={value}" for name, value in (BASE | settings).items() if value is not None]


class Job:
    """The runs of one command line.

    Attributes:
        path: The run directory.
        kills: How many processes were stopped.
    """

    def __init__(self, place, path, settings):
        self.place, self.path, self.kills = place, path, 0
        self.argv = ["-m", "tfgpu.train", *argv_of(settings), f"--run_dir={path}"]

    def start(self, argv=None):
        environment = os.environ | {"PYTHONPATH": str(Path(tfgpu.__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, *(argv or self.argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.place,
            env=environment,
        )

    def finish(self, argv=None):
        """Runs to the end; returns what was said."""
        out, err = self.start(argv).communicate(timeout=300)
        assert err == "", err
        return out

    def stop(self, when, number=signal.SIGKILL, *, delay=0.0, argv=None):
        """Starts, waits for what `when` sees, and a little longer, and sends the signal.

        Returns:
            The exit code, and what was said on standard error.
        """
        process = self.start(argv)
        try:
            deadline = time.monotonic() + 300
            while not when() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(delay)
            self.kills += process.poll() is None
        finally:
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
        return process.returncode, err

    def entries(self):
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.path / "checkpoints")
        return []

    def newest(self):
        """Steps in the newest checkpoint, -1 when there is none."""
        names = [re.fullmatch(r"step-(\d+)(?:\.\d+)?", name) for name in self.entries()]
        return max((int(name[1]) for name in names if name), default=-1)

    def writes(self):
        return any(name.endswith(".tmp") for name in self.entries())


def checkpoint_state(path):
    """The final checkpoint: a digest of every array, and its state but for times and sizes."""
    newest = max((path / "checkpoints").glob("step-*"))
    manifest = json.loads((newest / "manifest.json").read_text())
    raw = (newest / "arrays.bin").read_bytes()
    arrays = {
        entry["name"]: (
            entry["dtype"],
            entry["shape"],
            hashlib.sha256(raw[entry["offset"] : entry["offset"] + entry["nbytes"]]).hexdigest(),
        )
        for entry in manifest["arrays"]
    }
    state = manifest["state"]
    for name in ("Timing", "TensorBoard"):
        del state["callbacks"][name]
    # Files are cut back by their size; lines with other times have other lengths.
    del state["callbacks"]["Record"]["state"]["metrics_bytes"]
    return {"step": manifest["step"], "state": state, "arrays": arrays}


def model_state(path):
    """A digest of every weight of model.keras, as plain Keras loads it."""
    model = keras.models.load_model(path / "model.keras", compile=False)
    return [hashlib.sha256(weight.tobytes()).hexdigest() for weight in model.get_weights()]


def metrics(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = ("samples_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def events(path):
    """All that TensorBoard would show but for times, in the order in which it lies there."""
    shown = {}
    for part in ("train", "validation"):
        files = (path / "tensorboard" / part).glob("events.out.tfevents.*")
        seen = shown[part] = []
        for file in sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)]):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag.startswith(("performance/", "memory/", "hardware/")):
                        continue
                    # A process numbers its functions, and Keras its layers.
                    graph = value.tag in ("__run_graph__", "keras")
                    content = b"" if graph else value.tensor.SerializeToString()
                    seen.append((value.tag, event.step, content))
    return shown


def outcome(path):
    result = json.loads((path / "result.json").read_text())
    times = ("samples_per_second", "train_seconds", "total_seconds", "time_spent", "hardware")
    return {name: value for name, value in result.items() if name not in times}


def same(whole, cut):
    """Compares two finished runs, but for times."""
    assert outcome(cut)["status"] == "finished"
    assert metrics(cut) == metrics(whole)
    assert outcome(cut) == outcome(whole)
    assert checkpoint_state(cut) == checkpoint_state(whole)
    assert model_state(cut) == model_state(whole)
    assert events(cut) == events(whole)
    assert not [name for name in os.listdir(cut / "checkpoints") if name.endswith(".tmp")]


@contextlib.contextmanager
def beside(place, path, settings):
    """An uninterrupted run, made while the others are."""
    process = Job(place, path, settings).start()
    try:
        yield path
    except BaseException:
        process.kill()
        process.communicate()
        raise
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")


def said_command(err):
    """The arguments of the command in the line that an interrupted run ends with."""
    [line] = err.splitlines()
    program, *arguments = shlex.split(line.partition("continue with: ")[2])
    assert program == "tfgpu"
    return ["-m", "tfgpu", *arguments]


class Killed(BaseException):
    """Stands in for a kill: nothing is saved any more."""


def command(path, **settings):
    """Runs the command in this process; returns its exit code."""
    sys.modules.pop("resume_models", None)
    return trained_runs.command(*argv_of(settings), f"--run_dir={path}")


def killed(path, monkeypatch, *, steps, **settings):
    """Leaves a run that was killed after that many steps."""
    from tfgpu.train.record import Record

    def on_train_batch_end(self, batch, logs=None):
        _record(self, batch, logs)
        if self._outcome["steps"] >= steps:
            raise Killed

    _record = Record.on_train_batch_end
    with monkeypatch.context() as patched:
        patched.setattr(Record, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(Killed):
            command(path, **settings)
    return path


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
