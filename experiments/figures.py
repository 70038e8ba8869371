"""Runs each recipe here with three seeds and writes the figures that the documents quote.

    python experiments/figures.py [digits] [cifar10] [cifar10_tuned] ... [--seeds=0,1,2]

Writes `experiments/results/figures.json`: for each seed test accuracy, training time and
the wall time of the whole process, TensorFlow's import included, with their medians. Recipes that
are not named keep what is in the file. With --views=mirror_shift the model is evaluated once more,
as the average over six views of each image (`tfgpu evaluate`).

    python experiments/figures.py --describe

trains nothing, and writes what each recipe in the file trains: parameters, operations, epochs.
`experiments/ladder.py` makes `experiments/README.md` of all that.
"""

from __future__ import annotations

import argparse
import json
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from versus import machine, write, written

from tfgpu.cli import startup

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
RECIPES = ("digits", "cifar10", "cifar10_tuned", "cifar10_quick", "cifar10_augmented")


def measure(recipe: str, *, seeds: Sequence[int], views: str | None) -> Iterator[dict[str, Any]]:
    """Trains a recipe with each seed, in processes of their own; yields what is known so far."""
    runs = []
    environment: dict[str, Any] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "run"
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.perf_counter()
            _tfgpu(
                "train",
                f"--experiment={HERE / recipe}.py",
                *(f"--seed={seed}", f"--run_dir={directory}"),
            )
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            result = json.loads((directory / "result.json").read_text())
            environment = json.loads((directory / "environment.json").read_text())
            kept = ("test_accuracy", "test_loss", "train_seconds", "samples_per_second")
            run = {"seed": seed, **{name: result[name] for name in kept}}
            run["process_seconds"] = seconds
            # Of all cores; it tells more than the clock where other work shares them.
            used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            run["process_cpu_seconds"] = used
            if views is not None:
                run["test_accuracy_of_views"] = _accuracy_of_views(directory, views)
        runs.append(run)
        names = [name for name in run if name != "seed"]
        print(
            f"{recipe:<10} seed {seed}  " + "  ".join(f"{name} {run[name]:.4f}" for name in names),
            flush=True,
        )
        dataset = environment["dataset"]
        yield {
            "command": f"python -m tfgpu.train --experiment=experiments/{recipe}.py",
            "machine": machine(),
            "dataset": {key: dataset[key] for key in ("name", "version", "fingerprint")},
            "versions": environment["versions"],
            **({} if views is None else {"views": views}),
            "median": {name: statistics.median(each[name] for each in runs) for name in names},
            "runs": runs,
        }


def _tfgpu(command: str, *flags: str) -> str:
    words = [sys.executable, "-m", f"tfgpu.{command}", *flags]
    environment = startup.child_environment()
    done = subprocess.run(
        words, check=True, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, env=environment
    )
    return done.stdout


def _accuracy_of_views(run: Path, views: str) -> float:
    """Test accuracy of the mean output over views of each image."""
    out = run / "views"
    _tfgpu("evaluate", f"--run_dir={run}", f"--views={views}", f"--out={out}")
    found = json.loads((out / "evaluation.json").read_text())
    return float(found["accuracy"])


def describe(recipe: str) -> dict[str, Any]:
    """What a recipe trains: parameters, operations of a training step an image, epochs."""
    startup.prepare_environment()
    startup.import_tensorflow()
    from tfgpu.machine import flops
    from tfgpu.models.builders import find_builder
    from tfgpu.tasks import loading

    about = runpy.run_path(str(HERE / f"{recipe}.py"))["config"]()
    data = loading.load(
        about["dataset"], data_dir=None, validation_fraction=0.0, image_size=None, seed=0
    )
    builder = find_builder(about["model"], data.task.models, task=data.task.name)
    shape = {name: about[name] for name in ("width", "depth") if name in about}
    model = builder(**data.task.arguments(data.spec), **shape)
    return {
        "model": about["model"],
        "parameters": model.count_params(),
        "training_flops_per_image": flops.count(model).training,
        "epochs": about["epochs"],
    }


def main() -> None:
    """Measures the recipes named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--views", help="also evaluate with these views of each image")
    parser.add_argument("--describe", action="store_true", help="train nothing")
    options = parser.parse_args()
    unknown = [name for name in options.recipes if name not in RECIPES]
    if unknown:
        parser.error(f"{unknown[0]}: the recipes are {', '.join(RECIPES)}")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for recipe in options.recipes:
        if options.describe:
            known = written("figures.json").get("recipes", {}).get(recipe)
            entries: Iterable[dict[str, Any]] = [] if known is None else [known]
        else:
            entries = measure(recipe, seeds=seeds, views=options.views)
        for entry in entries:
            # Read anew: another process may have added a recipe meanwhile.
            found = written("figures.json").get("recipes", {}) | {
                recipe: {**entry, **describe(recipe)}
            }
            write("figures.json", {"recipes": {n: found[n] for n in RECIPES if n in found}})


if __name__ == "__main__":
    main()
