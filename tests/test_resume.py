"""Runs of the command that are killed and started again end with the bits of one that is not.

Every process here is a real one, `python -m tfgpu.train`, and is stopped by a real signal. When
is decided by a seed and counted from something seen on the disk, such as a new checkpoint, so
that kills fall into training, writing, renaming and removing alike on any machine.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import tfgpu

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder: images and a module with a model."""
    place = tmp_path_factory.mktemp("user")
    noise = np.random.RandomState(0)
    for split, count in (("train", 30), ("test", 7)):
        for label, name in enumerate(("dark", "light")):
            folder = place / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.randint(40 * label, 216 + 40 * label, (8, 8, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    (place / "resume_models.py").write_text(MODEL)
    return place


class Job:
    """The runs of one command line.

    Attributes:
        path: The run directory.
        kills: How many processes were stopped.
    """

    def __init__(self, place, path, settings):
        self.place, self.path, self.kills = place, path, 0
        flags = [f"--{k}={v}" for k, v in (BASE | settings).items() if v is not None]
        self.argv = ["-m", "tfgpu.train", *flags, f"--run_dir={path}"]

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
    del state["callbacks"]["_Record"]["state"]["metrics_bytes"]
    return {"step": manifest["step"], "state": state, "arrays": arrays}


def model_state(path):
    """A digest of every array in model.keras."""
    raw = zipfile.ZipFile(path / "model.keras").read("model.weights.h5")
    digests = {}
    with h5py.File(io.BytesIO(raw)) as file:
        file.visititems(
            lambda name, item: (
                digests.update({name: hashlib.sha256(np.asarray(item).tobytes()).hexdigest()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return digests


def metrics(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    times = ("samples_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def events(path):
    """All that TensorBoard would show, in the order in which it lies there."""
    shown = {}
    for part in ("train", "validation"):
        files = (path / "tensorboard" / part).glob("events.out.tfevents.*")
        seen = shown[part] = []
        for file in sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)]):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    seen.append((value.tag, event.step, value.tensor.SerializeToString()))
    return shown


def outcome(path):
    result = json.loads((path / "result.json").read_text())
    times = ("samples_per_second", "train_seconds", "total_seconds")
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


def test_a_run_that_is_terminated_and_killed_ends_with_the_same_bits(place, tmp_path):
    settings = CASES["one device, resident"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, err = job.stop(lambda: job.newest() >= 4, signal.SIGTERM)
        assert code == 143, err
        before = job.newest()
        assert before >= 4
        command = said_command(err)
        code, _ = job.stop(lambda: job.newest() >= before + 6, argv=command, delay=0.002)
        assert code == -signal.SIGKILL
        assert f"continuing the run in {job.path}" in job.finish(command)
    same(tmp_path / "whole", job.path)


def test_two_replicas_that_stream_end_with_the_same_bits(place, tmp_path):
    settings = CASES["mirrored, streaming"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, _ = job.stop(lambda: job.newest() >= 9 and job.writes())
        assert code == -signal.SIGKILL
        job.finish()
    same(tmp_path / "whole", job.path)


def test_an_average_in_mixed_precision_ends_with_the_same_bits(place, tmp_path):
    settings = CASES["float16, average"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, err = job.stop(lambda: job.newest() >= 14, signal.SIGINT)
        assert code == 130
        assert f"--run_dir={job.path}" in said_command(err)
        job.finish()
    same(tmp_path / "whole", job.path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_twenty_instants(place, tmp_path, case):
    chance = random.Random(case)
    settings = CASES[case] | {"epochs": "14"}
    job = Job(place, tmp_path / "cut", settings)
    whole = tmp_path / "whole"
    in_writing = 0
    with beside(place, whole, settings):
        # Before there is anything, with the directory, with the first checkpoint.
        job.stop(lambda: True, delay=chance.uniform(0, 4))
        job.stop(job.path.is_dir, delay=chance.uniform(0, 0.1))
        job.stop(lambda: job.newest() >= 0, delay=chance.uniform(0, 0.05))
        for _ in range(18):
            # Into the writing of a later checkpoint, its renaming, or the removal of an old one.
            after = job.newest() + chance.randint(1, 4)
            busy = chance.random() < 0.5

            def when(after=after, busy=busy):
                return job.newest() >= after and (not busy or job.writes())

            code, _ = job.stop(when, delay=chance.uniform(0, 0.004 if busy else 0.03))
            assert code == -signal.SIGKILL
            in_writing += job.writes()
        job.finish()
    assert job.kills >= 20
    assert in_writing >= 3
    same(whole, job.path)


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A finished run to copy."""
    job = Job(place, tmp_path_factory.mktemp("runs") / "run", {"epochs": "2"})
    job.finish()
    return job


@pytest.fixture
def copy(finished, place, tmp_path):
    """Makes a job on a copy of the finished run, which counts as killed before its end."""

    def copy(**settings):
        path = shutil.copytree(finished.path, tmp_path / "run")
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(result | {"status": "running"}))
        return Job(place, path, {"epochs": "2"} | settings)

    return copy
