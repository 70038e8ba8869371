"""Tries which combinations of settings train here, each in its own process, with a time limit.

    python -m tfgpu.doctor.probe '{"library": "tfgpu", ...}'

trains one combination and prints its outcome; a combination with several workers runs in several
processes. To cover what usually breaks, the network is a small CNN with batch normalisation and
dropout, the last batch of an epoch is partial, and two epochs are trained.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tfgpu.cli.startup import child_environment
from tfgpu.doctor.libraries import how_ended
from tfgpu.doctor.settings import PROBE_AXES

REPLICAS = 2
"""Replicas of a distributed strategy: virtual devices where there are fewer GPUs."""

EXAMPLES, BATCH = 88, 16  # Five batches and a half.

_MARK = "tfgpu probe: "


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of settings.

    Attributes:
        library: "keras" for stock `keras.Model`, or "tfgpu".
        strategy: One of `tfgpu.cli.config.STRATEGIES`.
        precision: One of `tfgpu.cli.config.PRECISIONS`.
        jit_compile: Whether XLA compiles the step.
        steps_per_execution: Steps per call from Python.
        gradient_accumulation_steps: Steps per update of the weights.
        input: "resident" or "streaming" for tfgpu, "tf.data" for Keras.
    """

    library: str
    strategy: str
    precision: str
    jit_compile: bool
    steps_per_execution: int
    gradient_accumulation_steps: int = 1
    input: str = "resident"

    def __str__(self) -> str:
        words = [self.library, self.strategy, self.precision, "XLA" if self.jit_compile else ""]
        words.append(f"{self.steps_per_execution} steps" if self.steps_per_execution > 1 else "")
        words.append("accumulation" if self.gradient_accumulation_steps > 1 else "")
        return " ".join(filter(None, words))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a combination.

    Attributes:
        status: Whether it works.
        seconds: From the start of its process to its end.
        loss: Of the last epoch; None unless it works.
        error: Why it fails; empty otherwise.
    """

    status: Literal["works", "fails", "hangs"]
    seconds: float
    loss: float | None = None
    error: str = ""


def cells(words: str) -> list[Cell]:
    """Returns the combinations that `--probe` names.

    Args:
        words: "all", or words of `PROBE_AXES` joined by commas.
    """
    given = set() if words == "all" else set(words.split(","))

    def chosen(axis: str) -> list[str]:
        return [word for word in PROBE_AXES[axis] if word in given] or list(PROBE_AXES[axis])

    return [
        Cell(
            library=library,
            strategy=strategy,
            precision=precision,
            jit_compile=jit == "xla",
            steps_per_execution=4 if steps == "4_steps" else 1,
            gradient_accumulation_steps=2 if accumulation == "accumulation" else 1,
            input="resident" if library == "tfgpu" else "tf.data",
        )
        for strategy, precision, jit, steps, accumulation, library in itertools.product(
            chosen("strategy"),
            chosen("precision"),
            chosen("jit_compile"),
            chosen("steps_per_execution"),
            chosen("gradient_accumulation_steps"),
            chosen("library"),
        )
    ]


def run(cell: Cell, *, gpus: int = 0, limit: float = 120) -> Outcome:
    """Trains one combination in child processes.

    Args:
        cell: The combination.
        gpus: How many of this machine's GPUs to use; 0 trains on the CPU.
        limit: Seconds after which it counts as hanging.
    """
    workers = REPLICAS if cell.strategy == "multi_worker_mirrored" else 1
    addresses = _free_addresses(workers)
    start = time.perf_counter()
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        try:
            for index in range(workers):
                first = index == 0
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", __name__, json.dumps(asdict(cell))],
                        env=_environment(index, addresses if workers > 1 else [], gpus=gpus),
                        stdout=out if first else subprocess.DEVNULL,
                        stderr=err if first else subprocess.DEVNULL,
                        text=True,
                    )
                )
            code = processes[0].wait(timeout=limit)
        except subprocess.TimeoutExpired:
            seconds = time.perf_counter() - start
            error = f"no end after {limit:g} s"
            return Outcome(status="hangs", seconds=seconds, error=error)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        for line in out:
            if line.startswith(_MARK):
                return Outcome(seconds=seconds, **json.loads(line.removeprefix(_MARK)))
        said = [line for line in err.read().splitlines() if line.strip()]
    why = f": {first_words(said[-1])}" if said else ""
    error = f"the process ended with {how_ended(code)}{why}"
    return Outcome(status="fails", seconds=seconds, error=error)


def _environment(index: int, addresses: Sequence[str], *, gpus: int) -> dict[str, str]:
    environment = child_environment()
    environment.pop("TF_CONFIG", None)
    if addresses:
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
        )
    if not gpus or (addresses and gpus < len(addresses)):
        # NCCL refuses two workers on one GPU, so they train on the CPU.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    elif addresses:
        shown = [part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
        environment["CUDA_VISIBLE_DEVICES"] = shown[index] if shown else str(index)
    return environment


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


def first_words(error: object) -> str:
    """Returns the beginning of a message, without the file names and lines of a traceback."""
    text = re.sub(r'File "[^"]*", line \d+, in \S+|\x1b\[\d*m', "", str(error))
    return " ".join(text.split())[:200]


def table(results: Iterable[tuple[Cell, Outcome]]) -> str:
    """Formats what works, fails and hangs: Keras and tfgpu side by side, and each error once.

    Args:
        results: Combinations with their outcomes.
    """
    found = dict(results)
    precisions = list(dict.fromkeys(cell.precision for cell in found))
    libraries = list(dict.fromkeys(cell.library for cell in found))
    heads = ["strategy", "XLA", "steps", "accumulation"]
    rows: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for cell, outcome in found.items():
        key = (
            cell.strategy,
            "on" if cell.jit_compile else "off",
            str(cell.steps_per_execution),
            str(cell.gradient_accumulation_steps),
        )
        rows.setdefault(key, {})[cell.precision, cell.library] = outcome.status
    left = [max(len(head), *(len(key[i]) for key in rows)) for i, head in enumerate(heads)]
    wide = max(map(len, (*libraries, "works")))
    span = max(len(libraries) * (wide + 2) - 2, *map(len, precisions))

    def line(settings: Iterable[str], groups: Iterable[str]) -> str:
        texts = [f"{text:<{width}}" for text, width in zip(settings, left, strict=True)]
        return "  ".join([*texts, *(f"{text:<{span}}" for text in groups)]).rstrip()

    names = "  ".join(f"{library:<{wide}}" for library in libraries)
    lines = [line([""] * len(heads), precisions), line(heads, [names] * len(precisions))]
    for settings, row in rows.items():
        groups = [
            "  ".join(f"{row.get((precision, library), '-'):<{wide}}" for library in libraries)
            for precision in precisions
        ]
        lines.append(line(settings, groups))
    errors: dict[str, list[Cell]] = {}
    for cell, outcome in found.items():
        if outcome.status != "works":
            errors.setdefault(f"{cell.library}: {outcome.error[:120]}", []).append(cell)
    for error, those in sorted(errors.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(those):>4} x {error}")
    return "\n".join(lines)


def _train(cell: Cell) -> float:
    """Trains and returns the loss of the last epoch."""
    import numpy as np

    from tfgpu.cli import startup
    from tfgpu.machine import runtime

    startup.prepare_environment()
    startup.import_tensorflow()
    import keras
    import tensorflow as tf

    warnings.simplefilter("ignore")
    gpus = len(tf.config.list_physical_devices("GPU"))
    split = cell.strategy == "mirrored" and gpus < REPLICAS
    strategy = runtime.start(
        strategy=cell.strategy, virtual_devices=REPLICAS if split else 0, precision=cell.precision
    ).strategy
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (EXAMPLES, 12, 12, 3), dtype=np.uint8)
    labels = random.integers(0, 4, EXAMPLES, dtype=np.int32)
    accumulation = cell.gradient_accumulation_steps
    with strategy.scope():
        x = inputs = keras.Input((12, 12, 3))
        x = keras.layers.Rescaling(1 / 255)(x)
        x = keras.layers.Conv2D(8, 3, activation="relu")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Dropout(0.2)(keras.layers.Flatten()(x))
        outputs = keras.layers.Dense(4, dtype="float32")(x)
        if cell.library == "tfgpu":
            import tfgpu

            model = tfgpu.Model(inputs, outputs)
        else:
            model = keras.Model(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(
                0.01,
                momentum=0.9,
                gradient_accumulation_steps=accumulation if accumulation > 1 else None,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=cell.jit_compile,
            steps_per_execution=cell.steps_per_execution,
        )
    data: Any
    arguments: dict[str, Any] = {}
    if cell.library == "keras":
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    else:
        from tfgpu.data.examples import Examples
        from tfgpu.data.inputs import make_resident, training_batches

        def read(positions: Any) -> tuple[Any, Any]:
            return tf.gather(images, positions), tf.gather(labels, positions)

        examples = Examples(EXAMPLES, read, lambda image, label: (image, label))
        resident = make_resident(examples, strategy) if cell.input == "resident" else ()
        data = training_batches(
            examples, batch_size=BATCH, seed=0, augment=("crop",), resident=resident
        )
        arguments["steps_per_epoch"] = data.steps_per_epoch
    history = model.fit(data, epochs=2, verbose=0, shuffle=False, **arguments).history
    return float(history["loss"][-1])


def _main(cell: Cell) -> None:
    outcome: dict[str, Any]
    try:
        loss = _train(cell)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        outcome = {"status": "works", "loss": loss}
    except Exception as error:
        text = f"{type(error).__name__}: {first_words(error)}"
        outcome = {"status": "fails", "error": text}
    print(_MARK + json.dumps(outcome), flush=True)
    # A failed step may leave threads that wait forever for another worker.
    os._exit(0)


if __name__ == "__main__":
    _main(Cell(**json.loads(sys.argv[1])))
