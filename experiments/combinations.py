"""Which combinations train: stock Keras and tfgpu, side by side.

    python experiments/combinations.py

Every cell of strategy x precision x XLA x steps per execution trains a small CNN (with
batch normalisation and dropout, on batches of which the last is partial) for two epochs
with each library; tfgpu with resident and with streaming input. The processor is split
into two virtual devices; two workers are two processes on the loopback interface. Each
group of cells has a process of its own and a time limit, so that one that aborts or hangs
is seen as such. Takes about half an hour on 2 cores. Writes
`experiments/results/combinations.json` and prints the README's table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from versus import machine, write

STRATEGIES = ("one_device", "mirrored x2", "multi_worker_mirrored x2")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STEPS = (1, 4, 100)  # The last is more than an epoch.
INPUTS = {"keras": ("tf.data",), "tfgpu": ("resident", "streaming")}
LIMIT = 240
"""Seconds for the cells of one process."""

EXAMPLES, BATCH = 88, 16  # Five whole batches and a half.


def worker(library: str, strategy_name: str, precision: str, jit: bool, place: str) -> None:
    """Trains the cells of one group and writes each outcome as soon as it is known."""
    import numpy as np

    if library == "tfgpu":
        from tfgpu import runtime

        runtime.prepare_environment()
        runtime.import_tensorflow()
    import keras
    import tensorflow as tf

    warnings.simplefilter("ignore")
    several = strategy_name == "mirrored x2"
    if several:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    elif strategy_name == "one_device":
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.config.set_dtype_policy(precision)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (EXAMPLES, 12, 12, 3), dtype=np.uint8)
    labels = random.integers(0, 4, EXAMPLES, dtype=np.int32)

    def batches(input_mode: str) -> tuple[Any, dict[str, Any]]:
        if input_mode == "tf.data":
            data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
            return data, {}
        from tfgpu.data.examples import Examples
        from tfgpu.data.inputs import make_resident, training_batches

        def read(positions: Any) -> tuple[Any, Any]:
            return tf.gather(images, positions), tf.gather(labels, positions)

        examples = Examples(EXAMPLES, read, lambda image, label: (image, label))
        resident = make_resident(examples, strategy) if input_mode == "resident" else ()
        data = training_batches(
            examples, batch_size=BATCH, seed=0, augment=("crop",), resident=resident
        )
        return data, {"steps_per_epoch": data.steps_per_epoch}

    for steps, input_mode in itertools.product(STEPS, INPUTS[library]):
        keras.utils.set_random_seed(0)
        try:
            with strategy.scope():
                x = inputs = keras.Input((12, 12, 3))
                x = keras.layers.Rescaling(1 / 255)(x)
                x = keras.layers.Conv2D(8, 3, activation="relu")(x)
                x = keras.layers.BatchNormalization()(x)
                x = keras.layers.MaxPooling2D(2)(x)
                x = keras.layers.Dropout(0.2)(keras.layers.Flatten()(x))
                outputs = keras.layers.Dense(4, dtype="float32")(x)
                if library == "tfgpu":
                    import tfgpu

                    model = tfgpu.Model(inputs, outputs)
                else:
                    model = keras.Model(inputs, outputs)
                model.compile(
                    keras.optimizers.SGD(0.01, momentum=0.9),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    metrics=["accuracy"],
                    jit_compile=jit,
                    steps_per_execution=steps,
                )
            data, arguments = batches(input_mode)
            history = model.fit(data, epochs=2, verbose=0, shuffle=False, **arguments).history
            loss = float(history["loss"][-1])
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}")
            outcome: dict[str, Any] = {"works": True, "loss": loss}
        except Exception as error:
            outcome = {"works": False, "error": f"{type(error).__name__}: {first_words(error)}"}
        if os.environ.get("TFGPU_WORKER", "0") == "0":
            with open(place, "a") as file:
                file.write(json.dumps({"steps": steps, "input": input_mode, **outcome}) + "\n")


def first_words(error: object) -> str:
    """The beginning of a message, without the places in files that it names."""
    text = re.sub(r'File "[^"]*", line \d+, in \S+', "", str(error))
    return " ".join(text.split())[:200]


def group(library: str, strategy: str, precision: str, jit: bool) -> list[dict[str, Any]]:
    """Runs a group of cells in processes of its own; cells that left no word are failures."""
    root = Path(__file__).resolve().parent.parent
    workers = 2 if strategy.startswith("multi") else 1
    ports = []
    for _ in range(workers):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "outcomes"
        place.touch()
        processes = []
        for index in range(workers):
            environment = os.environ | {
                "PYTHONPATH": str(root),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "TFGPU_WORKER": str(index),
            }
            if workers > 1:
                addresses = [f"127.0.0.1:{port}" for port in ports]
                environment["TF_CONFIG"] = json.dumps(
                    {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                )
            request = json.dumps([library, strategy, precision, jit, str(place)])
            processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", request],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        reason = "aborted"
        try:
            processes[0].wait(timeout=LIMIT)
            for process in processes[1:]:
                process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            reason = f"hung for {LIMIT} s"
        for process in processes:
            process.kill()
            process.wait()
        outcomes = [json.loads(line) for line in place.read_text().splitlines()]
    known = {(outcome["steps"], outcome["input"]): outcome for outcome in outcomes}
    return [
        {"library": library, "strategy": strategy, "precision": precision, "jit_compile": jit}
        | known.get(
            (steps, mode),
            {"steps": steps, "input": mode, "works": False, "error": f"the process {reason}"},
        )
        for steps, mode in itertools.product(STEPS, INPUTS[library])
    ]


def table(cells: list[dict[str, Any]]) -> str:
    """The README's table: how many cells of each kind train."""
    lines = [
        "| strategy | XLA | steps per execution | stock Keras | tfgpu |",
        "| --- | --- | --- | --- | --- |",
    ]
    for strategy, jit, several in itertools.product(STRATEGIES, (False, True), (False, True)):
        row = [strategy, "on" if jit else "off", "4, more than an epoch" if several else "1"]
        for library in ("keras", "tfgpu"):
            chosen = [
                cell["works"]
                for cell in cells
                if cell["library"] == library
                and cell["strategy"] == strategy
                and cell["jit_compile"] == jit
                and (cell["steps"] > 1) == several
            ]
            row.append(f"{sum(chosen)} of {len(chosen)}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs all groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--strategy", choices=STRATEGIES, help="measure this one again, and keep the others"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*json.loads(options.worker))
        return
    cells = []
    if options.strategy:
        known = json.loads((Path(__file__).parent / "results" / "combinations.json").read_text())
        cells = [cell for cell in known["cells"] if cell["strategy"] != options.strategy]
    chosen = [options.strategy] if options.strategy else STRATEGIES
    for kind in itertools.product(INPUTS, chosen, PRECISIONS, (False, True)):
        outcomes = group(*kind)
        cells += outcomes
        works = sum(outcome["works"] for outcome in outcomes)
        print(*kind, f"{works} of {len(outcomes)} work", flush=True)
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write("combinations.json", {"machine": machine(), "versions": versions, "cells": cells})
    print(table(cells))


if __name__ == "__main__":
    main()
