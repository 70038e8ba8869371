"""The checks of `gpu_report.py` whose time does not matter, one group a process.

    python experiments/gpu_checks.py GROUP

prints one line of JSON a check: "name", "passed" (true, false, or null for a figure that
nothing is asked of), "figures" and "note". Each group can run beside others. What measures speed
is in `gpu_speed.py`.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_place import BATCH, ROOT, Place, digest, examples, say, small_network

from tfgpu.cli import startup

DIRECTIONS = {"HD": "to device", "DH": "to host", "DD": "within", "HH": "on the host"}


# ---- what the device is asked to do ---------------------------------------------------------


def kernels() -> None:
    """What the device map needs is on the device, without soft placement; and data stay there."""
    place = Place()
    tf = place.tf
    from tfgpu.data.gathering import gather
    from tfgpu.data.inputs import make_resident

    device = f"{place.kind}:0"
    tf.config.set_soft_device_placement(False)
    with tf.device(device):
        images = tf.zeros([8, 32, 32, 3], tf.uint8)
        rows = tf.zeros([8, 32], tf.int32)
    operations: dict[str, Callable[[], Any]] = {
        "gather of uint8": lambda: gather(images, tf.constant([1, 2])),
        "gather of uint8, by row": lambda: gather(images, rows, axis=1, batch_dims=1),
        "reverse of uint8": lambda: tf.reverse(images, [2]),
        "where of uint8": lambda: tf.where(images > images, images, images),
        "gather of int32 labels": lambda: tf.gather(rows, [1, 2]),
        "uint8 to float16": lambda: tf.cast(images, tf.float16),
    }
    for name, operation in operations.items():
        try:
            with tf.device(device):
                result = operation()
            say(f"kernel: {name}", device in result.device, result.device)
        except tf.errors.OpError as error:
            say(f"kernel: {name}", False, error.message.splitlines()[0])
    tf.config.set_soft_device_placement(True)
    (arrays,) = make_resident(examples(tf, 64), place.strategy())
    devices = [array.device for array in arrays]
    say("resident data are on the device", all(device in each for each in devices), str(devices))


def cells(precision: str) -> None:
    """Both inputs, with and without XLA, in one precision: one trace, finite, nearly equal."""
    place = Place()
    tf = place.tf
    import keras
    import numpy as np

    import tfgpu
    from tfgpu.data.inputs import evaluation_batches, make_resident, training_batches

    keras.config.set_dtype_policy(precision)
    strategy = place.strategy()
    data = examples(tf, 4096 + 40 if place.on_gpu else 256 + 40)
    held = make_resident(data, strategy)
    losses = {}
    for jit, resident in itertools.product((False, True), (True, False)):
        with strategy.scope():
            model = small_network(tfgpu.Model, jit=jit)
        arrays = held if resident else ()
        batches = training_batches(
            data, batch_size=BATCH, seed=0, augment=("crop", "flip"), resident=arrays
        )
        validation = evaluation_batches(data, batch_size=4 * BATCH, resident=arrays)
        steps = {"steps_per_epoch": batches.steps_per_epoch, "verbose": 0, "shuffle": False}
        start = time.perf_counter()
        first = model.fit(batches, validation_data=validation, **steps)
        middle = time.perf_counter()
        then = model.fit(batches, epochs=2, **steps)
        end = time.perf_counter()
        # A function each for a step and for an execution in one program; of either one trace.
        traces = [len(f._list_all_concrete_functions()) for f in model.train_function.traced]
        found = [*first.history["loss"], *first.history["val_loss"], *then.history["loss"]]
        name = f"{precision}, {'XLA' if jit else 'no XLA'}, "
        name += "resident" if resident else "streaming"
        losses[name] = first.history["loss"][0]
        say(
            f"trains: {name}",
            bool(np.all(np.isfinite(found))) and max(traces) == 1,
            losses=found,
            traces=traces,
            first_seconds=middle - start,
            epoch_seconds=(end - middle) / 2,
        )
    low, high = min(losses.values()), max(losses.values())
    # Of a mean over an epoch from the same initial values: sums in another order, no more.
    allowed = 0.02 if precision == "float32" else 0.05
    say(f"equal losses: {precision}", high - low < allowed * high, losses=losses)


def two_devices() -> None:
    """Two logical devices of one GPU under MirroredStrategy train what one trains."""
    import numpy as np

    place = Place(split=True)
    tf = place.tf
    import tfgpu
    from tfgpu.data.inputs import make_resident, training_batches

    data = examples(tf, 1024 + 40)
    found = {}
    for number, jit in itertools.product((1, 2), (False, True)):
        alone = tf.distribute.OneDeviceStrategy(place.names[0])
        strategy = place.strategy() if number == 2 else alone
        with strategy.scope():
            model = small_network(tfgpu.Model, jit=jit, alike=True)
        batches = training_batches(
            data, batch_size=BATCH, seed=0, resident=make_resident(data, strategy)
        )
        history = model.fit(
            batches, steps_per_epoch=batches.steps_per_epoch, epochs=2, verbose=0, shuffle=False
        )
        found[f"{number} x {'XLA' if jit else 'no XLA'}"] = history.history["loss"]
    firsts = [losses[0] for losses in found.values()]
    passed = bool(np.all(np.isfinite(firsts))) and max(firsts) - min(firsts) < 0.02 * max(firsts)
    say("two replicas on parts of one device", passed, losses=found)


# ---- memory and copies ----------------------------------------------------------------------


def growth() -> None:
    """Nothing is kept from one epoch to the next."""
    place = Place()
    import numpy as np

    import tfgpu

    random = np.random.default_rng(0)
    x = random.integers(0, 256, (1000, 32, 32, 3), np.uint8)
    y = random.integers(0, 10, 1000, np.int32)
    with place.strategy().scope():
        model = small_network(tfgpu.Model, jit=True)
    model.fit(x, y, batch_size=100, epochs=2, verbose=0)
    gc.collect()  # A data set is part of a cycle, in Keras too.
    before = place.memory()["current"]
    model.fit(x, y, batch_size=100, epochs=25, verbose=0)
    gc.collect()
    grown = place.memory()["current"] - before
    say("no device memory is kept over 25 epochs", grown < 1e6, bytes=grown)


def peak_memory() -> None:
    """Peak memory beside stock Keras: 134 million parameters and Adam."""
    place = Place()
    if not place.on_gpu:
        say("peak memory beside stock Keras", None, "TensorFlow counts it on GPUs alone")
        return
    import keras
    import numpy as np

    import tfgpu

    units, depth = 4096, 8
    size = 4 * units * units * depth
    data = np.zeros((64, units), np.float32)
    peaks = {}
    for name, cls in (("keras", keras.Model), ("tfgpu", tfgpu.Model)):
        keras.backend.clear_session()
        before = place.memory()["current"]
        place.tf.config.experimental.reset_memory_stats("GPU:0")
        x = inputs = keras.Input((units,))
        for _ in range(depth):
            x = keras.layers.Dense(units, use_bias=False)(x)
        model = cls(inputs, x)
        model.compile("adam", "mse", jit_compile=True)
        model.fit(data, data, batch_size=32, verbose=0)
        peaks[name] = (place.memory()["peak"] - before) / size
        del model, inputs, x
    say(
        "peak memory is no more than stock Keras' with XLA",
        peaks["tfgpu"] <= 1.02 * peaks["keras"],
        "in sizes of the parameters",
        **peaks,
    )


def copies() -> None:
    """Copies between host and device in each step, counted in a profile."""
    place = Place()
    if not place.on_gpu:
        say("copies to the host in a step", None, "a profile shows copies on a GPU alone")
        return
    tf = place.tf
    import tfgpu
    from tfgpu.data.inputs import make_resident, training_batches
    from tfgpu.engine.step_statistics import StepStatistics

    strategy = place.strategy()
    executions = (64, 128)
    data = examples(tf, BATCH * executions[-1])
    for statistics_too in (False, True):
        counts = []
        for steps in executions:
            with strategy.scope():
                model = small_network(tfgpu.Model, jit=True, together=steps)
            if statistics_too:
                StepStatistics.of(model)
            batches = training_batches(
                data, batch_size=BATCH, seed=0, resident=make_resident(data, strategy)
            )
            arguments = {"steps_per_epoch": steps, "verbose": 0, "shuffle": False}
            model.fit(batches, **arguments)
            with tempfile.TemporaryDirectory() as folder:
                with tf.profiler.experimental.Profile(folder):
                    model.fit(batches, **arguments)
                counts.append(_copies_in(Path(folder)))
        name = "with the statistics of TensorBoard" if statistics_too else "of a plain model"
        # Those of an execution, which brings the logs to the host, are in both, and none of a step.
        few, many = counts
        a_step = {
            kind: (many.get(kind, 0) - few.get(kind, 0)) / (executions[1] - executions[0])
            for kind in DIRECTIONS.values()
        }
        say(
            f"copies to the host in a step, {name}",
            bool(few and many) and a_step["to host"] <= 0,
            a_step=a_step,
            an_execution=dict(zip(map(str, executions), counts, strict=True)),
        )


def _copies_in(folder: Path) -> dict[str, int]:
    """Copies by direction, of the one profile under a folder; {} where it shows none."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    counts: dict[str, int] = {}
    for path in folder.rglob("*.xplane.pb"):
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
        for plane in space.planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for event in (event for line in plane.lines for event in line.events):
                name = plane.event_metadata[event.metadata_id].name
                found = re.search(r"Memcpy ?([HD])(?:to|2)([HD])", name)
                if found:
                    between = "".join(found.groups())
                    counts[DIRECTIONS[between]] = counts.get(DIRECTIONS[between], 0) + 1
    return counts


# ---- data that end, errors, a kill ----------------------------------------------------------


def odd_data() -> None:
    """Data without a size, and data that raise: an end, not a hang."""
    place = Place()
    tf = place.tf
    import numpy as np

    import tfgpu

    x, y = np.zeros((16, 32, 32, 3), np.uint8), np.zeros(16, np.int32)
    spec = tf.TensorSpec([None, 32, 32, 3], tf.uint8), tf.TensorSpec([None], tf.int32)

    def batches(broken: bool) -> Iterator[Any]:
        for number in range(21):
            if broken and number == 13:
                raise ValueError("a bad row")
            yield x, y

    def of(broken: bool) -> Any:
        return tf.data.Dataset.from_generator(lambda: batches(broken), output_signature=spec)

    with place.strategy().scope():
        model = small_network(tfgpu.Model, jit=True)
    model.fit(of(False), epochs=2, verbose=0)
    seen = int(model.optimizer.iterations.numpy())
    say("data without a size: every batch is trained on", seen == 42, steps=seen, expected=42)
    start = time.perf_counter()
    try:
        model.fit(of(True), verbose=0)
        say("an error in the data is raised", False, "none was")
    except tf.errors.OpError as error:
        seconds = time.perf_counter() - start
        said = "a bad row" in str(error)
        say("an error in the data is raised", said and seconds < 60, seconds=seconds)


def passes() -> None:
    """Each pass over data makes its iterator anew, sees all of it, and keeps nothing."""
    place = Place()
    tf = place.tf
    import numpy as np

    import tfgpu

    begun: dict[str, int] = {"training": 0, "validation": 0}
    read: dict[str, int] = {"training": 0, "validation": 0}
    spec = tf.TensorSpec([None, 32, 32, 3], tf.uint8), tf.TensorSpec([None], tf.int32)

    def of(use: str, count: int) -> Any:
        def batches() -> Iterator[Any]:
            begun[use] += 1
            for number in range(count):
                read[use] += 1
                yield np.full((16, 32, 32, 3), number, np.uint8), np.full(16, number % 10, np.int32)

        return tf.data.Dataset.from_generator(batches, output_signature=spec)

    epochs, sizes = 4, {"training": 21, "validation": 5}
    with place.strategy().scope():
        model = small_network(tfgpu.Model, jit=True)
        model.optimizer.learning_rate = 0.0
    data = {use: of(use, count) for use, count in sizes.items()}
    memory = []

    def passed(count: int) -> Any:
        found = model.fit(
            data["training"], validation_data=data["validation"], epochs=count, verbose=0
        )
        gc.collect()
        memory.append(place.memory()["current"])
        return found.history

    passed(1)
    history = passed(epochs)
    seen = int(model.optimizer.iterations.numpy())
    say(
        "each pass makes its iterator anew and sees all data",
        begun == dict.fromkeys(begun, 1 + epochs)
        and read == {use: count * (1 + epochs) for use, count in sizes.items()}
        and seen == read["training"],
        begun=begun,
        read=read,
        steps=seen,
        val_loss=history["val_loss"],
    )
    grown = memory[1] - memory[0]
    say("a pass keeps no device memory", grown < 1e6, bytes=grown)


def _train(*flags: str, run_dir: Path, environment: dict[str, str] | None = None) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", "tfgpu.train", *flags, f"--run_dir={run_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | (environment or {}),
    )


def resume(precision: str) -> None:
    """A run that is killed and started again ends with the bits of one that was not."""
    flags = ("--dataset=digits", "--epochs=8", "--deterministic=true", f"--precision={precision}")
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        # One that measures the device's peak, one that finds it measured.
        cache = {"XDG_CACHE_HOME": str(Path(folder, "cache"))}
        unbroken = _train(*flags, run_dir=whole, environment=cache)
        said, _ = unbroken.communicate()
        if unbroken.returncode:
            say(f"killed and resumed: {precision}", False, said.strip().splitlines()[-1])
            return
        running = _train(*flags, run_dir=killed, environment=cache)
        rows = killed / "metrics.jsonl"
        while running.poll() is None:
            if rows.exists() and len(rows.read_text().splitlines()) >= 3:
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.05)
        running.communicate()
        again = _train(*flags, run_dir=killed, environment=cache)
        said, _ = again.communicate()
        if again.returncode:
            say(f"killed and resumed: {precision}", False, said.strip().splitlines()[-1])
            return
        first, second = (_metrics(run) for run in (whole, killed))
        differing = [a["epoch"] for a, b in zip(first, second, strict=True) if a != b]
        startup.prepare_environment()
        startup.import_tensorflow().config.set_visible_devices([], "GPU")
        import keras

        digests = [
            digest(keras.saving.load_model(run / "model.keras").get_weights())
            for run in (whole, killed)
        ]
        say(
            f"killed and resumed: {precision}",
            digests[0] == digests[1] and not differing,
            f"epochs that differ: {differing}" if differing else "to the bit",
            losses=[[row["loss"] for row in rows] for rows in (first, second)],
            weights=digests,
        )


def _metrics(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "samples_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def doctor() -> None:
    """`tfgpu doctor` finds that training can start."""
    done = subprocess.run(
        [sys.executable, "-m", "tfgpu.doctor"], capture_output=True, text=True, cwd=ROOT
    )
    note = "" if done.returncode == 0 else (done.stdout + done.stderr).strip()
    say("doctor exits 0", done.returncode == 0, note)


GROUPS: dict[str, Callable[[], None]] = {
    "doctor": doctor,
    "kernels": kernels,
    **{
        f"cells_{precision}": (lambda precision=precision: cells(precision))
        for precision in ("float32", "mixed_float16", "mixed_bfloat16")
    },
    "two_devices": two_devices,
    "growth": growth,
    "peak_memory": peak_memory,
    "copies": copies,
    "odd_data": odd_data,
    "passes": passes,
    **{
        f"resume_{precision}": (lambda precision=precision: resume(precision))
        for precision in ("float32", "mixed_float16")
    },
}
"""By name; each may run beside the others."""

if __name__ == "__main__":
    GROUPS[sys.argv[1]]()
