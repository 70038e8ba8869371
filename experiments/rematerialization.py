"""What `--remat` saves and costs: peak memory and time of a step, with it and without.

    python experiments/rematerialization.py

Three networks in float32 by SGD with momentum, with XLA and without. "peak" is the largest
resident size of a process of its own over 6 steps, less what it had after building and compiling
the model (TensorFlow's libraries, the weights); gradients and the optimizer's momentum are in it.
"seconds" is the median of the last 5 steps. Both are medians of three processes, which take turns
with and without. Writes `experiments/results/rematerialization.json`; takes 20 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time

from versus import apart, machine, write

STEPS, ROUNDS = 6, 3
# Name, image side, classes, batch, further arguments of the builder.
NETWORKS = [
    ("resnet20", 32, 10, 512, {}),
    ("wide_resnet", 32, 10, 64, {"depth": 16, "width": 4.0}),
    ("resnet50", 160, 1000, 16, {}),
]


def train(
    name: str, *, side: int, classes: int, batch: int, arguments: dict, remat: bool, xla: bool
) -> dict[str, float]:
    """Trains in this process and returns MiB, seconds and the number of segments."""
    import resource

    from tfgpu.cli import startup

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    import keras
    import numpy as np

    from tfgpu.models.builders import find_builder
    from tfgpu.models.segments import segments

    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    keras.utils.set_random_seed(0)
    model = find_builder(name)(image_shape=(side, side, 3), num_classes=classes, **arguments)
    if remat:
        model.tfgpu_segments = segments(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=xla)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    y = random.integers(0, classes, batch)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(STEPS)
    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, step, logs=None):
            times.append(time.perf_counter() - self.start)

    idle = resident()
    history = model.fit(data, epochs=1, verbose=0, callbacks=[Clock()])
    return {
        "peak": round(resident() - idle, 1),
        "seconds": round(statistics.median(times[1:]), 3),
        "first_step_seconds": round(times[0], 1),
        "segments": len(model.tfgpu_segments) if remat else 1,
        "loss": history.history["loss"][-1],
    }


def main() -> None:
    """Measures each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    only = parser.parse_args().only
    if only:
        print(json.dumps(train(**json.loads(only))))
        return
    rows = []
    for name, side, classes, batch, arguments in NETWORKS:
        for xla in (False, True):
            row = {"model": name, **arguments, "image": f"{side}x{side}x3", "batch_size": batch}
            row["xla"] = xla
            found: dict[str, list[dict]] = {"kept": [], "remat": []}
            for _ in range(ROUNDS):
                for way in found:
                    options = {
                        **{"name": name, "side": side, "classes": classes, "batch": batch},
                        **{"arguments": arguments, "remat": way == "remat", "xla": xla},
                    }
                    found[way].append(apart(__file__, options))
            for way, each in found.items():
                row[way] = {key: statistics.median(one[key] for one in each) for key in each[0]}
            row["memory_ratio"] = round(row["remat"]["peak"] / row["kept"]["peak"], 3)
            row["time_ratio"] = round(row["remat"]["seconds"] / row["kept"]["seconds"], 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write(
        "rematerialization.json",
        {"unit": "MiB", "machine": machine(), "versions": versions, "rows": rows},
    )


if __name__ == "__main__":
    main()
