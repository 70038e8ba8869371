"""The first epoch of `airbench94.py` beside the same recipe in PyTorch, on a CPU in float32.

    python experiments/airbench94_pytorch.py --python=PYTHON

PYTHON is an interpreter that has PyTorch and NumPy. Two comparisons:

- **Same numbers.** Both start from the same weights and see the same augmented batches of 250
  images. Compared are the losses of the steps and the weights at the end: after 3 steps with Muon's
  products in float32, and after 20 of a schedule of 24 with the products in bfloat16, as the recipe
  has them. Muon makes small differences grow some tenfold a step; so a third training is
  set beside both, tfgpu's from weights that were moved by 1e-7 of themselves.
- **Same curve.** Each draws its own random numbers. The loss of each step of the first epoch, of
  the recipe's eight, and the accuracy on the test split after it, over three seeds.

Writes `experiments/results/airbench94_pytorch.json`; takes 17 minutes on two cores with
`--width=0.5`, as the file there was made.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np

PYTORCH = Path(__file__).resolve().with_name("pytorch_airbench.py")
FIXED = {"batch_size": 250, "images": 2000, "epochs": 3}


# ---- tfgpu ----------------------------------------------------------------------------------


class Curve:
    """Trains by `airbench94.Trainer` and keeps the loss of each step.

    Args:
        recipe: Of `airbench94`.
        train: Images and labels.
        test: The same.
    """

    def __init__(self, recipe: Any, train: Any, test: Any):
        import airbench94

        self.trainer = airbench94.Trainer(recipe, train, test)
        self.trainer.model.steps_per_execution = 1

    def start(self, seed: int) -> None:
        """Gives everything its first values."""
        from tfgpu.models.airbench import reinitialise, whitening_kernel

        trainer = self.trainer
        reinitialise(trainer.model, seed=seed)
        for variable in trainer.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        images = trainer._resident[0][0]
        trainer.model.get_layer("whiten").kernel.assign(whitening_kernel(images, count=5000))

    def train(self, *, seed: int, steps: int) -> dict[str, Any]:
        """Trains some steps from what `start` left."""
        import keras

        trainer, size = self.trainer, self.trainer.recipe.batch_size
        sums: list[float] = []

        class Losses(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                # Keras gives the mean of the epoch so far.
                sums.append(float(logs["loss"]) * (batch + 1))

        first = 3 * trainer.steps_per_epoch
        trainer._freezing.first = first
        begin = time.perf_counter()
        trainer.model.fit(
            trainer._batches(seed, trainer._resident),
            steps_per_epoch=steps,
            verbose=0,
            shuffle=False,
            callbacks=[trainer._freezing, Losses()],
        )
        seconds = time.perf_counter() - begin
        losses = np.diff([0.0, *sums]) / size
        return {"losses": losses.tolist(), "seconds": seconds}

    def accuracy(self, count: int) -> float:
        """On the first images of the test split, without an average over views."""
        right = total = 0
        for images, labels in self.trainer._test:
            images, labels = images[: count - total], labels[: count - total]
            total += len(labels)
            logits = self.trainer.model.predict_on_batch(images)
            right += int((logits.argmax(axis=1) == labels.numpy()).sum())
            if total >= count:
                break
        return right / total

    def fixed_inputs(self, seed: int, steps: int, weights: Path, batches: Path) -> None:
        """Writes the weights that `start` left, and the batches of the first steps."""
        trainer = self.trainer
        np.savez(weights, **{v.path: v.numpy() for v in trainer.model.variables})
        dataset = trainer._batches(seed, trainer._resident)
        made = [
            dataset.device_map(element, trainer._resident[0]) for element in dataset.take(steps)
        ]
        images, labels = (
            np.stack([part.numpy() for part in parts]) for parts in zip(*made, strict=True)
        )
        np.savez(batches, images=images, labels=labels)


# ---- the comparison -------------------------------------------------------------------------


def write_data(path: Path, train: Any, test: Any) -> None:
    """Writes images and labels of both splits as `pytorch_airbench.py` reads them."""
    np.savez(path, images=train[0], labels=train[1], test_images=test[0], test_labels=test[1])


def by_pytorch(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Runs `pytorch_airbench.py` in another interpreter."""
    done = subprocess.run(
        [python, str(PYTORCH), f"--job={json.dumps(job)}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def same_numbers(
    python: str, folder: Path, train: Any, test: Any, *, width: float, products: str, steps: int
) -> dict[str, Any]:
    """Both from the same weights on the same batches, with Muon's products in one dtype."""
    import tensorflow as tf
    from airbench94 import Recipe

    from tfgpu.models import muon

    size, epochs = FIXED["batch_size"], FIXED["epochs"]
    train = tuple(part[: FIXED["images"]] for part in train)
    recipe = Recipe(
        epochs=epochs, batch_size=size, precision="float32", jit_compile=False, width=width
    )
    curve = Curve(recipe, train, tuple(part[:1000] for part in test))
    curve.start(seed=0)
    files = {name: folder / f"{name}.npz" for name in ("weights", "batches", "end", "data")}
    curve.fixed_inputs(0, steps, files["weights"], files["batches"])
    write_data(files["data"], train, tuple(part[:1000] for part in test))
    in_other = functools.partial(muon.orthogonalised, dtype=tf.as_dtype(products))
    with unittest.mock.patch.object(muon, "orthogonalised", in_other):
        ours = curve.train(seed=0, steps=steps)
        mine = {v.path: v.numpy() for v in curve.trainer.model.variables}
        curve.start(seed=0)
        random = np.random.default_rng(0)
        for variable in curve.trainer.model.trainable_variables:
            noise = 1 + 1e-7 * random.standard_normal(variable.shape)
            variable.assign(variable.numpy() * noise)
        moved = curve.train(seed=0, steps=steps)
        elsewhere = {v.path: v.numpy() for v in curve.trainer.model.variables}
    theirs = by_pytorch(
        python,
        {
            "products": products,
            **{name: str(path) for name, path in files.items()},
            **{"epochs": epochs, "batch_size": size, "steps": steps, "seed": 0, "test": 1000},
            "width": width,
        },
    )
    end = np.load(files["end"])

    def distances(of: Any) -> dict[str, float]:
        return {
            name: float(np.linalg.norm(mine[name] - of[name]) / np.linalg.norm(of[name]))
            for name in end.files
        }

    return {
        "products": products,
        "batch_size": size,
        "steps": steps,
        "width": width,
        "losses": {"tfgpu": ours["losses"], "pytorch": theirs["losses"]},
        "differences_of_losses": np.subtract(ours["losses"], theirs["losses"]).tolist(),
        "relative_distance_of_weights": distances(end),
        "moved": {
            "differences_of_losses": np.subtract(ours["losses"], moved["losses"]).tolist(),
            "relative_distance_of_weights": distances(elsewhere),
        },
    }


def same_curve(
    python: str, folder: Path, train: Any, test: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Each with its own random numbers, one epoch, some seeds."""
    from airbench94 import Recipe

    size, count = options.batch_size, options.test
    recipe = Recipe(batch_size=size, precision="float32", jit_compile=False, width=options.width)
    steps = len(train[0]) // size
    data = folder / "all.npz"
    test = tuple(part[:count] for part in test)
    write_data(data, train, test)
    curve = Curve(recipe, train, test)
    rows: dict[str, list[dict[str, Any]]] = {"tfgpu": [], "pytorch": []}
    for seed in range(options.seeds):
        curve.start(seed)
        ours = curve.train(seed=seed, steps=steps)
        ours["accuracy"] = curve.accuracy(count)
        job = {"data": str(data), "end": str(folder / "end.npz"), "epochs": recipe.epochs}
        job["products"] = "bfloat16"
        job |= {"batch_size": size, "steps": steps, "seed": seed, "test": count}
        theirs = by_pytorch(python, job | {"width": options.width})
        for name, row in (("tfgpu", ours), ("pytorch", theirs)):
            rows[name].append({"seed": seed, **row})
            print(
                f"{name:<8} seed {seed}: last loss {row['losses'][-1]:.4f}, accuracy "
                f"{row['accuracy']:.4f}, {row['seconds']:.0f} s",
                flush=True,
            )
    found: dict[str, Any] = {
        "images": len(train[0]),
        "batch_size": size,
        "steps": steps,
        "width": options.width,
        "test_images": count,
        **rows,
    }
    curves = {name: np.array([row["losses"] for row in rows[name]]) for name in rows}
    for name in rows:
        accuracies = [row["accuracy"] for row in rows[name]]
        found[f"{name}_mean_curve"] = curves[name].mean(axis=0).tolist()
        found[f"{name}_accuracy"] = {
            "mean": statistics.fmean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        }
    if options.seeds > 1:
        # Of each step: the difference of the two means in units of its standard error.
        error = np.sqrt(sum(c.var(axis=0, ddof=1) / options.seeds for c in curves.values()))
        gap = curves["tfgpu"].mean(axis=0) - curves["pytorch"].mean(axis=0)
        found["difference_of_means"] = gap.tolist()
        found["in_standard_errors"] = (gap / error).tolist()
        found["steps_within_two_standard_errors"] = int((np.abs(gap) < 2 * error).sum())
    return found


def main() -> None:
    """Compares, or writes what PyTorch is to train on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with PyTorch")
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--batch_size", type=int, default=2000)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--output", default="airbench94_pytorch.json")
    parser.add_argument("--write_data", type=Path, help="write the images for it, and no more")
    options = parser.parse_args()
    import cifar10_arrays
    from versus import machine, write

    from tfgpu.cli import startup

    startup.prepare_environment()
    startup.import_tensorflow()
    train, test, provenance = cifar10_arrays.load(options.data_dir)
    train = tuple(part[: options.limit] for part in train)
    if options.write_data:
        write_data(options.write_data, train, test)
        return
    version = "import importlib.metadata as m; print(m.version('torch'))"
    torch = subprocess.run(
        [options.python, "-c", version], check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as place:
        fixed = []
        for products, steps in (("float32", 3), ("bfloat16", 20)):
            files = (options.python, Path(place), train, test)
            row = same_numbers(*files, width=options.width, products=products, steps=steps)
            fixed.append(row)
            for name, of in (("PyTorch", row), ("moved weights", row["moved"])):
                print(
                    f"{steps} steps, products in {products}, beside {name}: losses differ by up to "
                    f"{max(map(abs, of['differences_of_losses'])):.2g}, weights by "
                    f"{max(of['relative_distance_of_weights'].values()):.2g}",
                    flush=True,
                )
        curve = None
        if options.seeds:
            curve = same_curve(options.python, Path(place), train, test, options)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write(
        options.output,
        {
            "machine": machine(),
            "versions": versions | {"torch": torch},
            "dataset": {key: provenance[key] for key in ("name", "version", "fingerprint")},
            "same_numbers": fixed,
            "same_curve": curve,
        },
    )


if __name__ == "__main__":
    main()
