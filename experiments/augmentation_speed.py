"""How many 32x32 images a second each augmentation changes on one CPU core.

    python experiments/augmentation_speed.py

Each runs as it does in the training step, on batches of 128 uint8 images, in a TensorFlow function
on one thread. A figure is the median of 9 rounds, in each of which all take turns; compilation is
excluded. Time is that of the processor, so that other work beside it counts little. Writes
`experiments/results/augmentation_speed.json`; takes 2 minutes on one core.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time

from versus import machine, write

BATCH, ROUNDS, SECONDS = 128, 9, 0.5
SIDES, CLASSES = (32, 32), 10


def main() -> None:
    """Measures every augmentation of images, with XLA and without."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from tfgpu.cli import startup

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import numpy as np

    from tfgpu.data import augmentations

    random = np.random.default_rng(0)
    x = tf.constant(random.integers(0, 256, (BATCH, *SIDES, 3), dtype=np.uint8))
    y = tf.one_hot(random.integers(0, CLASSES, BATCH), CLASSES)
    ways = {}
    for name, each in augmentations.of_images().items():
        draws = tf.constant(random.random((BATCH, each.numbers)), tf.float32)
        given = [x, y, draws] + ([tf.roll(x, 1, 0), tf.roll(y, 1, 0)] if each.mixes else [])
        for xla in (False, True):
            function = tf.function(each.function, jit_compile=xla)
            function(*given)[0].numpy()
            ways[name, xla] = (function, given)
    rates: dict[tuple[str, bool], list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (function, given) in ways.items():
            start, calls, elapsed = time.process_time(), 0, 0.0
            while elapsed < SECONDS / len(ways) * 10:
                function(*given)[0].numpy()
                calls += 1
                elapsed = time.process_time() - start
            rates[way].append(calls * BATCH / elapsed)
    rows = []
    for name in augmentations.of_images():
        row: dict[str, object] = {"augmentation": name}
        for way, xla in (("graph", False), ("xla", True)):
            found = sorted(rates[name, xla])
            row[way] = {
                "median": round(statistics.median(found)),
                "low": round(found[len(found) // 4]),
                "high": round(found[-1 - len(found) // 4]),
            }
        rows.append(row)
        print(f"{name:<14}{row['graph']['median']:>10,}{row['xla']['median']:>10,}", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write(
        "augmentation_speed.json",
        {
            "unit": "images/s of 32x32x3 on one core, by processor time",
            "batch_size": BATCH,
            "rounds": ROUNDS,
            "machine": machine(),
            "versions": versions,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
