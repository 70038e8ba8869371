"""Times competing training loops side by side; the parts that `versus_*.py` share.

Each process is a process of its own, with its own environment, that stays alive and
trains for a fixed number of examples whenever it is told to. The driver tells them in
turn and quotes ratios of neighbours (`tfgpu.bench.interleaved_timing`).

All but the processes of `versus_keras_resnet50.py` and of the tasks (`texts.py` and the like) train
the same network (`lenet`: 62,006 parameters, 32x32x3 images, 10 classes) by cross-entropy and SGD
with Nesterov momentum 0.9, on the same number of examples, shuffled, held in memory. Compilation
and the first pass are excluded.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfgpu.bench import interleaved_timing
from tfgpu.bench.interleaved_timing import compare, spread

__all__ = ["TrainingProcess", "apart", "arguments", "compare", "machine", "interleave"]
__all__ += ["children_seconds", "spread", "write", "written"]

EXAMPLES = 8192
"""In the data set that each process holds."""


class TrainingProcess:
    """A process that trains when told to.

    Args:
        name: For the table.
        kind: Which of `WORKERS` it runs.
        options: Its keyword arguments.
        python: The interpreter.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        options: Mapping[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.options = dict(options)
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TF_", "XLA_", "OMP_", "KMP_"))
        }
        root = Path(__file__).resolve().parent.parent
        clean["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [clean.get("PYTHONPATH")])])
        self._process = interleaved_timing.MeasuredProcess(
            [python, __file__, kind, json.dumps(self.options)],
            environment=clean | dict(environment or {}),
        )
        self.versions = self._process.read()

    def rate(self) -> float:
        """Trains once more and returns samples/s."""
        return float(self._process.ask("go"))

    def close(self) -> None:
        """Ends the process."""
        self._process.close()


def interleave(processes: Sequence[TrainingProcess], *, rounds: int) -> list[list[float]]:
    """Lets each process train once a round, in turn; samples/s, a list for each."""
    rates = [process.rate for process in processes]
    return interleaved_timing.interleave(rates, rounds=rounds)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def write(name: str, result: Mapping[str, Any]) -> None:
    """Writes a result to experiments/results."""
    place = Path(__file__).resolve().parent / "results" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"written to {place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place}"
    )


def written(name: str) -> dict[str, Any]:
    """What `write` wrote under a name; {} where it has not yet."""
    place = Path(__file__).resolve().parent / "results" / name
    return dict(json.loads(place.read_text(encoding="utf-8"))) if place.exists() else {}


def children_seconds() -> float:
    """User processor time that child processes have taken, which other work does not stretch."""
    import resource  # Not on Windows, which reads the rest of this module too.

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def apart(file: str, options: Mapping[str, Any]) -> Any:
    """What `python FILE --only=OPTIONS` prints last, as JSON: a figure of a process of its own."""
    done = subprocess.run(
        [sys.executable, file, f"--only={json.dumps(options)}"],
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def arguments(description: str, output: str) -> argparse.ArgumentParser:
    """The flags that the commands share; `output` is where they write without a flag."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch_sizes", default="128,512")
    parser.add_argument("--output", default=output, help="in experiments/results")
    return parser


# ---- what runs in the processes' processes ------------------------------------------------


def _serve(train: Callable[[], int], versions: Sequence[str]) -> None:
    """Trains whenever a line comes; `train` returns the examples it used."""
    train()
    train()
    interleaved_timing.answer({name: importlib.metadata.version(name) for name in versions})
    for _ in sys.stdin:
        start = time.perf_counter()
        samples = train()
        interleaved_timing.answer(samples / (time.perf_counter() - start))


def _arrays() -> tuple[Any, Any]:
    import numpy as np

    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (EXAMPLES, 32, 32, 3), dtype=np.uint8),
        random.integers(0, 10, EXAMPLES, dtype=np.int32),
    )


def _repetitions(batch_size: int) -> int:
    # Small batches are slow: a part of the data is enough for a second's work.
    return max(1, min(EXAMPLES // batch_size, 64 if batch_size < 32 else 10**9))


def _keras_strategy(devices: int) -> Any:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if devices > 1:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    return tf.distribute.get_strategy()


def tfgpu_worker(
    *,
    batch_size: int,
    devices: int = 1,
    steps_per_execution: int = 16,
    steps: int | None = None,
    tensorboard: bool = False,
    hardware_interval: float | None = None,
    log_to: str = "none",
) -> None:
    """`tfgpu.Model.fit` with resident input; `steps` a turn, by default a pass over the data."""
    from tfgpu.cli import startup
    from tfgpu.machine import runtime

    startup.prepare_environment()
    startup.import_tensorflow()
    import keras
    import tensorflow as tf

    from tfgpu.train import session
    from tfgpu.train.settings import TrainSettings

    # As `tfgpu train --batch_size=... --virtual_devices=...` does.
    machine = runtime.start(
        virtual_devices=devices if devices > 1 else 0,
        small_steps=session.has_small_steps(TrainSettings(batch_size=batch_size)),
    )
    from tfgpu.data.examples import Examples
    from tfgpu.data.inputs import make_resident, training_batches
    from tfgpu.models.lenet import lenet

    images, labels = _arrays()
    steps = steps or _repetitions(batch_size)

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, positions), tf.gather(labels, positions)

    def decode(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.ensure_shape(image, images.shape[1:]), label

    examples = Examples(EXAMPLES, read, decode)
    resident = make_resident(examples, machine.strategy)
    with machine.strategy.scope():
        model = lenet(image_shape=(32, 32, 3), num_classes=10)
        model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=min(steps_per_execution, steps),
        )
    batches = training_batches(examples, batch_size=batch_size, seed=0, resident=resident)
    callbacks = []
    folder = tempfile.TemporaryDirectory()
    if tensorboard:
        import tfgpu
        from tfgpu.train.tensorboard import POINTS_AN_EPOCH

        every = max(1, steps // POINTS_AN_EPOCH)
        callbacks = [tfgpu.TensorBoard(folder.name, update_freq=every, hparams={})]
    monitor = None
    if hardware_interval is not None:
        from tfgpu.machine.hardware_monitor import HardwareMonitor

        monitor = HardwareMonitor.of_devices(machine.devices, interval=hardware_interval)
        monitor.start()
    if log_to != "none":
        from tracker_cost import tracking

        callbacks += tracking(Path(folder.name), log_to, steps=steps, monitor=monitor)
    _serve_fit(model, batches, steps=steps, batch_size=batch_size, callbacks=callbacks)


def keras_worker(*, batch_size: int, devices: int = 1) -> None:
    """Stock `keras.Model.fit` over a `tf.data` pipeline, in TensorFlow's default environment."""
    import keras
    import tensorflow as tf

    strategy = _keras_strategy(devices)
    images, labels = _arrays()
    steps = _repetitions(batch_size)
    dataset = (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(EXAMPLES)
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    with strategy.scope():
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
        x = keras.layers.Conv2D(6, 5, activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Conv2D(16, 5, activation="relu")(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(120, activation="relu")(x)
        x = keras.layers.Dense(84, activation="relu")(x)
        model = keras.Model(inputs, keras.layers.Dense(10)(x))
        model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    _serve_fit(model, dataset, steps=steps, batch_size=batch_size)


def resnet50_worker(*, model: str, devices: int = 1, batch_size: int = 32) -> None:
    """`keras.applications.ResNet50` on 64x64 images, with `fit` of "keras" or of "tfgpu".

    Both in the environment that tfgpu sets up, so that the kernels are the same.
    """
    from tfgpu.cli import startup

    startup.prepare_environment()
    startup.import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    import tfgpu

    strategy = _keras_strategy(devices)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4 * batch_size, 64, 64, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 4 * batch_size, dtype=np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.repeat().batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    with strategy.scope():
        inputs = keras.Input((64, 64, 3))
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
        body = keras.applications.ResNet50(
            include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
        )
        outputs = keras.layers.Dense(10)(body(x))
        network = (tfgpu.Model if model == "tfgpu" else keras.Model)(inputs, outputs)
        network.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    _serve_fit(network, dataset, steps=4, batch_size=batch_size)


def task_worker(
    *,
    engine: str,
    task: str,
    model: str,
    dataset: str,
    batch_size: int,
    task_options: Mapping[str, Any] | None = None,
    target: str | None = None,
) -> None:
    """A task on a data set, with `fit` of "keras" or of "tfgpu": one model, the same examples.

    Stock Keras runs over a `tf.data` pipeline, in TensorFlow's default environment. Nothing is
    augmented.
    """
    if engine == "tfgpu":
        from tfgpu.cli import startup

        startup.prepare_environment()
        startup.import_tensorflow()
    import keras
    import tensorflow as tf

    from tfgpu.data.inputs import make_resident, training_batches
    from tfgpu.models.builders import find_builder
    from tfgpu.tasks import loading

    strategy = _keras_strategy(1)
    if engine == "tfgpu":
        from tfgpu.machine import runtime

        strategy = runtime.start().strategy
    data = loading.load(
        dataset,
        data_dir=None,
        validation_fraction=0.0,
        image_size=None,
        seed=0,
        task=task,
        features={"y": target} if target else {},
        options=lambda found: {**found.options, **(task_options or {})},
    )
    steps = min(data.train.num_examples // batch_size, 64)
    batches: Any
    if engine == "tfgpu":
        resident = make_resident(data.train, strategy)
        # Both without a smaller last batch: one that may come costs steps of many operations a
        # fifth of their speed, since shapes are then not known.
        batches = training_batches(
            data.train, batch_size=batch_size, seed=0, resident=resident, drop_remainder=True
        )
    else:
        batches = (
            tf.data.Dataset.from_tensor_slices(data.train.load_arrays())
            .shuffle(data.train.num_examples)
            .repeat()
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )
    with strategy.scope():
        network = find_builder(model, data.task.models)(**data.task.arguments(data.spec))
        if engine == "keras":
            network = keras.Model(network.input, network.outputs[0])
        network.compile(
            keras.optimizers.AdamW(1e-3, weight_decay=0.01),
            data.task.loss(data.spec, {"label_smoothing": 0.0}),
            metrics=data.task.metrics(data.spec),
            steps_per_execution=16 if engine == "tfgpu" else 1,
        )
    _serve_fit(network, batches, steps=steps, batch_size=batch_size)


def _serve_fit(
    model: Any, data: Any, *, steps: int, batch_size: int, callbacks: Sequence[Any] = ()
) -> None:
    """Serves the epochs of one endless `fit`: one call, one warm input pipeline."""
    import keras

    go, done = threading.Semaphore(0), threading.Semaphore(0)
    gate = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: go.acquire(),
        on_epoch_end=lambda epoch, logs: done.release(),
    )

    def train() -> int:
        go.release()
        done.acquire()
        return steps * batch_size

    versions = ("tensorflow", "keras", "numpy")
    threading.Thread(target=_serve, args=(train, versions), daemon=True).start()
    model.fit(
        data,
        steps_per_epoch=steps,
        epochs=10**9,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, gate],
    )


def pytorch_worker(*, batch_size: int) -> None:
    """Eager PyTorch, float tensors in memory, batches by index, the loop everybody writes."""
    import numpy as np
    import torch
    from torch import nn

    images, labels = _arrays()
    x = torch.from_numpy((images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(labels.astype(np.int64))
    network = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    steps = _repetitions(batch_size)

    def train() -> int:
        order = torch.randperm(EXAMPLES)
        running = 0.0
        for step in range(steps):
            index = order[step * batch_size : (step + 1) * batch_size]
            optimizer.zero_grad()
            loss = criterion(network(x[index]), y[index])
            loss.backward()
            optimizer.step()
            running += loss.item()
        return steps * batch_size

    _serve(train, ("torch", "numpy"))


WORKERS: dict[str, Callable[..., None]] = {
    "tfgpu": tfgpu_worker,
    "keras": keras_worker,
    "pytorch": pytorch_worker,
    "resnet50": resnet50_worker,
    "task": task_worker,
}

if __name__ == "__main__":
    WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))
