"""The first epochs of `resnet20` on CIFAR-10 beside the same recipe in PyTorch, in float32.

    python experiments/resnet20_pytorch.py --python=PYTHON

PYTHON is an interpreter that has PyTorch and NumPy. Both train with SGD (rate 0.1, momentum 0.9,
decoupled weight decay 1e-4), batches of 128 with the smaller last one, images mirrored and shifted
by up to 4 pixels, each with random numbers of its own. Compared are the mean loss of each epoch and
the accuracy on the test split after it: the difference of the means over the seeds, in standard
errors. Both train at once, with a thread each; times are none to compare. Writes
`experiments/results/resnet20_pytorch.json` after each seed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PYTORCH = Path(__file__).resolve().with_name("pytorch_resnet20.py")
RECIPE = {"batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """What `pytorch_resnet20.train` does, in tfgpu."""
    from tfgpu.cli import startup

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    import keras
    import numpy as np

    from tfgpu.data.examples import Examples
    from tfgpu.data.inputs import evaluation_batches, make_resident, training_batches
    from tfgpu.models.resnet import resnet20

    keras.utils.set_random_seed(job["seed"])
    data = np.load(job["data"])
    train, test = (
        Examples.from_arrays(data[f"{kind}images"], data[f"{kind}labels"].astype(np.int32))
        for kind in ("", "test_")
    )
    strategy = tf.distribute.get_strategy()
    model = resnet20(image_shape=(32, 32, 3), num_classes=10)
    model.compile(
        keras.optimizers.SGD(
            job["learning_rate"], momentum=job["momentum"], weight_decay=job["weight_decay"]
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=17,  # 391 steps an epoch.
    )
    batches = training_batches(
        train,
        batch_size=job["batch_size"],
        seed=job["seed"],
        augment=("flip", "crop"),
        resident=make_resident(train, strategy),
    )
    result: dict[str, Any] = {"losses": [], "accuracies": [], "seconds": []}
    result["parameters"] = sum(int(np.prod(v.shape)) for v in model.trainable_variables)

    class Epochs(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            result["seconds"].append(time.perf_counter() - self.begin)
            result["losses"].append(logs["loss"])
            tested = model.evaluate(
                evaluation_batches(test, batch_size=500), verbose=0, return_dict=True
            )
            result["accuracies"].append(tested["accuracy"])

    model.fit(
        batches,
        steps_per_epoch=batches.steps_per_epoch,
        epochs=job["epochs"],
        verbose=0,
        shuffle=False,
        callbacks=[Epochs()],
    )
    return result


def run(command: list[str], job: dict[str, Any], *, path: str | None) -> dict[str, Any]:
    """Trains in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [*command, f"--job={json.dumps(job)}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def differences(rows: dict[str, list[dict[str, Any]]], what: str) -> list[dict[str, float]]:
    """Of each epoch: both means, their difference, and that in standard errors."""
    found = []
    for epoch in range(len(rows["tfgpu"][0][what])):
        values = {name: [row[what][epoch] for row in rows[name]] for name in rows}
        means = {name: statistics.fmean(each) for name, each in values.items()}
        row = means | {"difference": means["tfgpu"] - means["pytorch"]}
        if len(values["tfgpu"]) > 1:
            error = sum(statistics.variance(each) / len(each) for each in values.values()) ** 0.5
            row["in_standard_errors"] = row["difference"] / error
        found.append(row)
    return found


def main() -> None:
    """Compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", help="what `train` takes, as JSON")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with PyTorch")
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="images of each split")
    parser.add_argument("--output", default="resnet20_pytorch.json")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(train(json.loads(options.job))))
        return
    import cifar10_arrays
    from airbench94_pytorch import write_data
    from versus import machine, write

    from tfgpu.cli import startup

    startup.prepare_environment()
    startup.import_tensorflow()
    train_split, test_split, provenance = cifar10_arrays.load(options.data_dir, limit=options.limit)
    version = "import importlib.metadata as m; print(m.version('torch'))"
    torch = subprocess.run(
        [options.python, "-c", version], check=True, capture_output=True, text=True
    ).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    ours = [sys.executable, __file__]
    theirs = [options.python, str(PYTORCH)]
    root = str(Path(__file__).resolve().parents[1])
    rows: dict[str, list[dict[str, Any]]] = {"tfgpu": [], "pytorch": []}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data.npz"
        write_data(data, train_split, test_split)
        for seed in range(options.seeds):
            job = {"data": str(data), "seed": seed, "epochs": options.epochs, "threads": 1}
            with concurrent.futures.ThreadPoolExecutor() as pool:
                found = {
                    "tfgpu": pool.submit(run, ours, job | RECIPE, path=root),
                    "pytorch": pool.submit(run, theirs, job | RECIPE, path=None),
                }
            for name, each in found.items():
                row = each.result()
                rows[name].append({"seed": seed, **row})
                shown = " ".join(f"{value:.4f}" for value in row["accuracies"])
                print(f"{name:<8} seed {seed}: accuracies {shown}", flush=True)
            result = {
                "machine": machine(),
                "versions": versions | {"torch": torch},
                "dataset": {key: provenance[key] for key in ("name", "version", "fingerprint")},
                "recipe": RECIPE | {"epochs": options.epochs, "images": len(train_split[0])},
                "loss": differences(rows, "losses"),
                "accuracy": differences(rows, "accuracies"),
                **rows,
            }
            write(options.output, result)


if __name__ == "__main__":
    main()
