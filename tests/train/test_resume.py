"""Runs of the command that are killed and started again end with the bits of one that is not.

Every process here is a real one, `python -m tfgpu.train`, and is stopped by a real signal. When
is decided by a seed and counted from something seen on the disk, such as a new checkpoint, so
that kills fall into training, writing, renaming and removing alike on any machine.
"""

import contextlib
import errno
import hashlib
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
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import tfgpu

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
    # TensorFlow's MirroredVariable, when Keras saves weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

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
def place(tmp_path_factory, tensorflow):
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
    """A digest of every weight of model.keras, as plain Keras loads it."""
    import keras  # Not above: the devices are set up first.

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
                    if value.tag.startswith(("performance/", "memory/")):
                        continue
                    # A process numbers its functions, and Keras its layers.
                    graph = value.tag in ("__run_graph__", "keras")
                    content = b"" if graph else value.tensor.SerializeToString()
                    seen.append((value.tag, event.step, content))
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


@pytest.mark.slow
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


# ---- in this process: what else can be wrong with a run that is to be continued ------------------


class Killed(BaseException):
    """Stands in for a kill: nothing is saved any more."""


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))


def command(path, **settings):
    """Runs the command in this process; returns its exit code."""
    from tfgpu.cli import entry
    from tfgpu.train import __main__ as train

    flags = [f"--{k}={v}" for k, v in (BASE | settings).items() if v is not None]
    sys.modules.pop("resume_models", None)
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, [*flags, f"--run_dir={path}"])
    sys.modules["keras"].config.set_dtype_policy("float32")
    return stop.value.code or 0


def killed(path, monkeypatch, *, steps, **settings):
    """Leaves a run that was killed after that many steps."""
    from tfgpu.train.run import _Record

    def on_train_batch_end(self, batch, logs=None):
        _record(self, batch, logs)
        if self._outcome["steps"] >= steps:
            raise Killed

    _record = _Record.on_train_batch_end
    with monkeypatch.context() as patched:
        patched.setattr(_Record, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(Killed):
            command(path, **settings)
    return path


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    """Runs that are made once: a whole one, and one that was killed after 12 of its 21 steps."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def whole(made, here):
    path = made / "whole"
    if not path.exists():
        assert command(path, epochs=3) == 0
    return path


@pytest.fixture
def cut(made, here, tmp_path, monkeypatch):
    """A run of its own that can be continued."""
    if not (made / "cut").exists():
        killed(made / "cut", monkeypatch, steps=12, epochs=3)
    return Path(shutil.copytree(made / "cut", tmp_path / "run"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def the_line(capsys):
    """The one line on standard error."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tfgpu: ")
    return line


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def test_a_damaged_checkpoint_is_named_and_an_older_one_leads_to_the_same_bits(whole, cut, capsys):
    newest, older = sorted((cut / "checkpoints").glob("step-*"), reverse=True)[:2]
    flip(newest / "arrays.bin", 100)
    left = cut / "checkpoints" / f".step-00000099-{'0' * 16}.tmp"
    left.mkdir()
    (left / "arrays.bin").write_bytes(b"half")
    capsys.readouterr()
    assert command(cut, epochs=3) == 0
    said = capsys.readouterr().out
    assert f"warning: {left} is left over" in said
    assert f"{newest} cannot be used: the checksum of " in said
    assert not left.exists() and not older.exists()  # Newer ones have come since.
    for path in (cut / "checkpoints").glob("step-*"):
        # The steps were gone through again, which the names tell.
        path.rename(path.with_name(path.name.partition(".")[0]))
    same(whole, cut)


def test_with_every_checkpoint_damaged_nothing_is_touched(cut, capsys):
    for path in (cut / "checkpoints").glob("step-*"):
        flip(path / "manifest.json", 200)
    before = contents(cut / "checkpoints")
    assert command(cut, epochs=3) == 4
    assert "holds no checkpoint that can be used: step-000000" in the_line(capsys)
    assert contents(cut / "checkpoints") == before


def test_without_its_checkpoints_a_run_is_not_begun_anew(cut, capsys):
    shutil.rmtree(cut / "checkpoints")
    metrics = (cut / "metrics.jsonl").read_bytes()
    assert command(cut, epochs=3) == 4
    line = the_line(capsys)
    assert str(cut) in line and "no checkpoint" in line
    assert (cut / "metrics.jsonl").read_bytes() == metrics


def test_it_goes_on_with_another_set_up_and_says_so(cut, capsys):
    changes = {
        "devices": "CPU:0,CPU:1",
        "precision": "mixed_float16",
        "jit_compile": "true",
        "steps_per_execution": 2,
        "input": "streaming",
        "tensorboard": "none",
    }
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    assert command(cut, epochs=3, **changes) == 0
    said = capsys.readouterr().out
    for text in (
        "the result will not be bit-identical",
        "replicas: 1 there, 2 now",
        'precision: "float32" there, "mixed_float16" now',
        "jit_compile: false there, true now",
        "steps_per_execution: 3 there, 2 now",
        'input: "resident" there, "streaming" now',
    ):
        assert text in said
    assert outcome(cut)["replicas"] == 2 and outcome(cut)["steps"] == 21
    assert [line["step"] for line in metrics(cut)] == [7, 14, 21]
    assert (cut / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"jit_compile": "true"},
        {"steps_per_execution": "1"},
        {"input": "streaming"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_another_set_up_goes_on_with_what_was_learnt(whole, cut, changes, capsys):
    assert command(cut, epochs=3, **changes) == 0
    assert "will not be bit-identical" in capsys.readouterr().out
    assert [line["step"] for line in metrics(cut)] == [7, 14, 21]
    # Dropout draws other numbers, and these are few examples.
    first, *following = [line["loss"] for line in metrics(cut)]
    assert first == metrics(whole)[0]["loss"]
    assert all(loss < 0.6 * first for loss in following)


def test_what_is_left_open_was_decided_when_the_run_began(whole, cut, tmp_path):
    # The defaults of a run in which they had been left open would be others.
    left_open = dict.fromkeys(
        ("batch_size", "learning_rate", "steps_per_execution", "augment"), None
    )
    assert command(cut, epochs=3, **left_open) == 0
    same(whole, cut)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1, "batch_size": 9}, ["batch_size: 8 there, 9 now", "seed: 0 there, 1 now"]),
        ({"optimizer": "adam"}, ['optimizer: "sgd" there, "adam" now']),
        ({"lr_schedule": "linear"}, ['lr_schedule: "cosine" there, "linear" now']),
        ({"validation_fraction": 0.2}, ["validation_fraction: 0.1 there, 0.2 now"]),
        ({"early_stopping": None}, ["early_stopping: 100 there, null now"]),
        ({"resume": "never"}, ["--resume=never overwrites nothing"]),
    ],
    ids=["seed and batch", "optimizer", "schedule", "split", "early stopping", "never"],
)
def test_other_settings_are_refused_with_their_names(cut, capsys, changes, said):
    before = contents(cut)
    assert command(cut, **{"epochs": 3} | changes) == 2
    line = the_line(capsys)
    assert all(text in line for text in said), line
    assert contents(cut) == before


def test_another_model_of_the_same_name_is_refused(cut, place, capsys):
    source = place / "resume_models.py"
    source.write_text(MODEL.replace("Dropout(0.3)", "Dropout(0.4)"))
    try:
        assert command(cut, epochs=3) == 2
    finally:
        source.write_text(MODEL)
    line = the_line(capsys)
    assert ".rate: 0.3 there, 0.4 now" in line and str(cut) in line


def test_other_images_of_the_same_names_are_refused(cut, place, tmp_path, capsys):
    image = place / "images" / "train" / "dark" / "00.png"
    before = image.read_bytes()
    Image.new("RGB", (8, 8)).save(image)
    try:
        assert command(cut, epochs=3) == 2
    finally:
        image.write_bytes(before)
    assert "data.fingerprint: " in the_line(capsys)


def test_must_needs_a_run(here, tmp_path, capsys):
    assert command(tmp_path / "none", resume="must") == 2
    assert "--resume=must" in the_line(capsys)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_finished_run_is_extended_and_stays_unfinished_until_that_is_done(
    here, tmp_path, monkeypatch, capsys
):
    settings = {"lr_schedule": "constant", "warmup_epochs": "0.5"}
    assert command(tmp_path / "whole", epochs=3, **settings) == 0
    assert command(tmp_path / "cut", epochs=1, **settings) == 0
    killed(tmp_path / "cut", monkeypatch, steps=10, epochs=3, **settings)
    # What the killed process could not say.
    result = tmp_path / "cut" / "result.json"
    assert json.loads(result.read_text())["status"] != "finished"
    assert command(tmp_path / "cut", epochs=3, **settings) == 0
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_the_exit_by_early_stopping_has_its_checkpoint(here, tmp_path, capsys):
    settings = {"early_stopping": 1, "learning_rate": 0.9, "epochs": 30, "checkpoint_every": 1000}
    assert command(tmp_path / "whole", **settings) == 0
    assert outcome(tmp_path / "whole")["epochs"] < 30
    assert checkpoint_state(tmp_path / "whole")["step"] == outcome(tmp_path / "whole")["steps"]
    # As if it had been killed in its test.
    cut = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    (cut / "model.keras").unlink()
    (cut / "result.json").unlink()
    assert command(cut, **settings) == 0
    same(tmp_path / "whole", cut)
    before = contents(cut)
    assert command(cut, **settings) == 0
    assert "holds this run, finished" in capsys.readouterr().out
    assert contents(cut) == before


# ---- a full disk ---------------------------------------------------------------------------------


def full_disk(patched, *, while_step):
    """Lets no checkpoint of those steps be written."""
    real = os.write

    def write(descriptor, data):
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        found = re.search(r"\.step-(\d+)", place)
        if found and while_step(int(found[1])):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    patched.setattr(os, "write", write)


linux = pytest.mark.skipif(sys.platform != "linux", reason="names files by /proc")


@linux
def test_a_disk_that_is_full_for_a_while_costs_nothing(whole, cut, monkeypatch, capsys):
    kept, seen = max((cut / "checkpoints").glob("step-*")), []
    with monkeypatch.context() as patched:
        full_disk(patched, while_step=lambda step: seen.append(kept.exists()) or step < 18)
        assert command(cut, epochs=3) == 0
    said = capsys.readouterr().out
    assert "warning: no checkpoint could be saved (No space left on device while writing" in said
    assert len(seen) > 3 and all(seen[:4])
    same(whole, cut)


@linux
def test_a_full_disk_at_the_end_keeps_the_last_checkpoint(whole, cut, monkeypatch, capsys):
    tries = []
    with monkeypatch.context() as patched:
        full_disk(patched, while_step=lambda step: step == 21 and not tries.append(step))
        assert command(cut, epochs=3) == 5
    line = the_line(capsys)
    assert len(tries) == 2
    assert "No space left on device" in line and "step-00000020 holds" in line
    assert outcome(cut)["status"] == "failed"
    assert command(cut, epochs=3) == 0
    same(whole, cut)


@linux
@pytest.mark.slow
def test_a_disk_that_has_room_again_at_the_end(whole, cut, monkeypatch, capsys):
    tries = []
    with monkeypatch.context() as patched:
        full_disk(
            patched,
            while_step=lambda step: step == 21 and not tries.append(step) and len(tries) < 2,
        )
        assert command(cut, epochs=3) == 0
    assert len(tries) > 1
    same(whole, cut)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="nobody may mount a tmpfs here",
)
@pytest.mark.parametrize("until", ["it is told", "the run ends"])
def test_a_real_disk_that_fills_up(place, tmp_path, until):
    settings = CASES["float16, average"] | {"epochs": "40"}
    Job(place, tmp_path / "whole", settings).finish()
    job = Job(place, tmp_path / "disk" / "run", settings)
    (tmp_path / "disk").mkdir()
    script = [sys.executable, "-c", FILL, str(tmp_path), until, *job.argv]
    environment = os.environ | {"PYTHONPATH": str(Path(tfgpu.__file__).parents[1])}
    done = subprocess.run(
        ["unshare", "-rm", *script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no checkpoint could be saved (No space left on device" in done.stdout
    if until == "the run ends":
        assert "No space left on device" in done.stderr and "keeps the training" in done.stderr
    shutil.copytree(tmp_path / "saved", job.path)
    same(tmp_path / "whole", job.path)


# The mount is this process's own and goes with it.
FILL = """
import contextlib, glob, os, shutil, subprocess, sys, threading, time
place, until, argv = sys.argv[1], sys.argv[2], [sys.executable, *sys.argv[3:]]
disk = place + "/disk"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
told = threading.Event()
def repeat():
    for line in process.stdout:
        print(line, end="", flush=True)
        if until == "it is told" and "no checkpoint could be saved" in line:
            told.set()
repeating = threading.Thread(target=repeat)
repeating.start()
while not glob.glob(disk + "/run/checkpoints/step-0000001*"):
    time.sleep(0.001)
with open(disk + "/filler", "ab", buffering=0) as filler:
    while not told.is_set() and process.poll() is None:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        time.sleep(0.005)
os.remove(disk + "/filler")
code = process.wait()
repeating.join()
if until == "the run ends":
    assert code == 5, code
    code = subprocess.run(argv).returncode
shutil.copytree(disk + "/run", place + "/saved")
sys.exit(code)
"""
