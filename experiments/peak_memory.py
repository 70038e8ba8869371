"""Peak memory of a training of 100 million parameters with Adam, beside stock Keras.

    python experiments/peak_memory.py

Six dense layers of 4096 units and Adam: 400 MB of weights, 800 MB of slots. Each figure is the
largest resident size of a process of its own, from its start, TensorFlow's libraries included, of
which "idle" is the size after importing them. Stock Keras is in TensorFlow's default
environment. Writes `experiments/results/peak_memory.json`; takes 4 minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json

from versus import apart, machine, write

UNITS, LAYERS = 4096, 6


def train(kind: str, *, xla: bool, devices: int) -> dict[str, float]:
    """Trains in this process and returns MiB: "idle" and "peak"."""
    import resource

    if kind == "tfgpu":
        import tfgpu
    import keras
    import numpy as np
    import tensorflow as tf

    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    strategy = tf.distribute.get_strategy()
    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    tf.constant(0.0)
    idle = resident()
    with strategy.scope():
        x = inputs = keras.Input((UNITS,))
        for _ in range(LAYERS):
            x = keras.layers.Dense(UNITS, activation="relu")(x)
        outputs = keras.layers.Dense(10)(x)
        model = (tfgpu.Model if kind == "tfgpu" else keras.Model)(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=xla)
    random = np.random.default_rng(0)
    data = random.random((32, UNITS), dtype=np.float32), random.integers(0, 10, 32)
    model.fit(tf.data.Dataset.from_tensor_slices(data).batch(8), epochs=2, verbose=0)
    return {"idle": idle, "peak": resident()}


def main() -> None:
    """Measures each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    only = parser.parse_args().only
    if only:
        print(json.dumps(train(**json.loads(only))))
        return
    rows = []
    for devices in (1, 2):
        for xla in (False, True):
            row = {"devices": devices, "xla": xla}
            for kind in ("keras", "tfgpu"):
                if kind == "keras" and devices > 1 and xla:
                    continue  # Stock Keras cannot.
                options = {"kind": kind, "xla": xla, "devices": devices}
                row[kind] = apart(__file__, options)
            if "keras" in row:
                row["ratio"] = row["tfgpu"]["peak"] / row["keras"]["peak"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write(
        "peak_memory.json",
        {
            "unit": "MiB",
            "parameters": LAYERS * UNITS * (UNITS + 1) + 10 * (UNITS + 1),
            "machine": machine(),
            "versions": versions,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
