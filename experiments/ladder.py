"""Writes `experiments/README.md`: what each recipe reaches, from `experiments/results/*.json`.

    python experiments/ladder.py            writes it
    python experiments/ladder.py --check    exits 1 if the file is not what it would write

What no results file holds is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"

VIEWS = {"mirror": 2, "mirror_shift": 6}
"""How many views of each image `tfgpu evaluate --views` averages over."""

_HEAD = """# Experiments

Each file here is a recipe or a measurement; its first lines say the command, what it needs and how
long it takes. Results lie in `results/`. `python experiments/ladder.py` writes this page
from them.

## The ladder: image classification

Accuracy is that of the test split, over runs with different seeds: mean ± standard deviation, and
n. Operations are those of one training step, for an image; a multiplication and an addition count
as two. "Training" is without validation and start-up, "process" includes TensorFlow's import;
both are medians. The rungs are ordered by data set and accuracy.

"""
_JPEG = """
CIFAR-10 comes from TensorFlow Datasets, in a copy whose images are JPEG-coded, but for the row of
`gpu_report.py`: that one is of the images as published. From the copy PyTorch reaches 90.8 % with
the recipe of `airbench94.py`. All 50,000 training images are trained on. `cifar10_tuned` was found
by a search that held a tenth of them out; of `cifar10_augmented` two settings were compared on the
test images.
"""
_TASKS = """
## Other tasks

Each seed takes another part at random for the test. The ratio of speed is to plain Keras' `fit` of
the same model on the same data, of neighbouring rounds: the median, and in brackets the middle
half. What each set cannot show is in the first lines of its file.

"""


def read(folder: Path, name: str) -> dict[str, Any]:
    """A results file; empty where there is none."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean(values: Sequence[float], digits: int = 4) -> str:
    """Mean, standard deviation and n."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return f"{text}, n={len(values)}"


def _hardware(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}, {machine['date']}"


def _million(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f} M"


def _rungs(folder: Path) -> Iterator[tuple[str, float, list[str]]]:
    """Data set, accuracy and cells of each recipe."""
    for name, entry in read(folder, "figures.json").get("recipes", {}).items():
        runs, dataset = entry["runs"], entry["dataset"]["name"]
        parameters, operations = entry.get("parameters"), entry.get("training_flops_per_image")
        median = entry["median"]

        def cells(
            accuracy: str,
            command: str,
            *,
            name: str = name,
            parameters: int | None = parameters,
            operations: float | None = operations,
            entry: dict[str, Any] = entry,
            median: dict[str, float] = median,
            dataset: str = dataset,
        ) -> list[str]:
            return [
                f"`{name}.py`: {entry.get('model', '')} on {dataset}",
                f"`{command}`",
                "" if parameters is None else f"{parameters:,}",
                _million(operations),
                str(entry.get("epochs", "")),
                accuracy,
                f"{median['train_seconds']:.1f} s",
                f"{median['process_seconds']:.1f} s",
                _hardware(entry["machine"]),
            ]

        found = [run["test_accuracy"] for run in runs]
        yield dataset, statistics.fmean(found), cells(mean(found), entry["command"])
        if "views" in entry:
            found = [run["test_accuracy_of_views"] for run in runs]
            command = f"python -m tfgpu.evaluate --run_dir=RUN --views={entry['views']}"
            accuracy = f"{mean(found)}, over {VIEWS[entry['views']]} views of each image"
            yield dataset, statistics.fmean(found), cells(accuracy, command)
    yield from _airbench(folder)
    yield from _resnet20(folder)


def _airbench(folder: Path) -> Iterator[tuple[str, float, list[str]]]:
    """The speed recipe, where `gpu_report.py` or `airbench94.py` has run."""
    found = []
    own = [read(folder, path.name) for path in sorted(folder.glob("airbench94*.json"))]
    own = [each for each in own if "recipe" in each]
    report = read(folder, "gpu_report.json")
    for group in report.get("groups", ()):
        for check in group["checks"]:
            if group["group"] == "airbench" and "accuracy" in check["figures"]:
                where = f"{report['gpu']['name']}, {group.get('date', report['machine']['date'])}"
                # Earlier reports do not say how many parameters the network has.
                known = {"parameters": own[0]["parameters"]} if own else {}
                found.append(("gpu_report.py", known | check["figures"], where))
    for each in own:
        recipe, about = each["recipe"], each["machine"]
        command = f"airbench94.py --runs={each['accuracy']['n']} --precision={recipe['precision']}"
        command += "" if recipe["jit_compile"] else " --no-jit_compile"
        command += "" if each["first_training_seconds"] else " --no-warm_up"
        device = each["device"].partition(",")[0]
        on_gpu = "capability" in each["device"]
        found.append((command, each, f"{device}, {about['date']}" if on_gpu else _hardware(about)))
    for command, figures, where in found:
        accuracy, operations = figures["accuracy"], figures.get("flops_per_image")
        if operations is None and figures.get("tflops") and figures.get("images_per_second"):
            operations = 1e12 * figures["tflops"] / figures["images_per_second"]
        spread = f" ± {accuracy['deviation']:.4f}" if accuracy["n"] > 1 else ""
        yield (
            "cifar10",
            accuracy["mean"],
            [
                "`airbench94.py`: airbench on cifar10",
                f"`python experiments/{command}`",
                f"{figures['parameters']:,}" if "parameters" in figures else "",
                _million(operations),
                str(figures["recipe"]["epochs"]),
                f"{accuracy['mean']:.4f}{spread}, n={accuracy['n']}, "
                f"over {VIEWS['mirror_shift']} views of each image",
                f"{figures['training']['mean']:.2f} s",
                "",
                where,
            ],
        )


def _resnet20(folder: Path) -> Iterator[tuple[str, float, list[str]]]:
    """Its first epochs beside PyTorch, each with one thread: no time to tell."""
    found = read(folder, "resnet20_pytorch.json")
    if found:
        runs, epochs = found["tfgpu"], found["recipe"]["epochs"]
        values = [run["accuracies"][-1] for run in runs]
        yield (
            "cifar10",
            statistics.fmean(values),
            [
                "`resnet20_pytorch.py`: resnet20 on cifar10",
                "`python experiments/resnet20_pytorch.py`",
                f"{runs[0]['parameters']:,}",
                "",
                str(epochs),
                f"{mean(values)}; PyTorch {found['accuracy'][-1]['pytorch']:.4f}",
                "",
                "",
                _hardware(found["machine"]),
            ],
        )


def _ratio(speed: Mapping[str, Any] | None) -> str:
    if not speed:
        return ""
    ratio = speed["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _task_rows(folder: Path) -> Iterator[list[str]]:
    """Task, model, metric, time, ratio to Keras, hardware."""

    def cells(
        what: str,
        metric: str,
        runs: Sequence[Mapping[str, Any]],
        yardsticks: str,
        speed: Mapping[str, Any] | None,
        machine: Mapping[str, Any],
    ) -> list[str]:
        values = [run.get(f"test_{metric}", run.get(metric)) for run in runs]
        # Where the trainings of a seed share a process, of each training with its start.
        times = [run.get("process_seconds", run.get("total_seconds")) for run in runs]
        seconds = statistics.median(times)
        figure = f"{metric} {mean(values, 3)}"
        return [what, figure, yardsticks, f"{seconds:.0f} s", _ratio(speed), _hardware(machine)]

    ratings = read(folder, "recommendations.json")
    for goal, about in ratings.get("goals", {}).items():
        metric = {"rating": "rmse", "retrieval": "ndcg_at_10"}[goal]
        yards = ", ".join(f"{name} {value:.3f}" for name, value in about["yardsticks"].items())
        for model, found in about["models"].items():
            what = f"`recommendations.py`: {goal}, {model}"
            speed = found.get("examples_per_second")
            yield cells(what, metric, found["runs"], yards, speed, ratings["machine"])
    texts = read(folder, "texts.json")
    for name, about in texts.get("tables", {}).items():
        linear = about.get("scikit_learn")
        yards = f"logistic regression {linear['median']:.3f}" if linear else ""
        for model, found in about["models"].items():
            what = f"`texts.py`: {name}, {model}"
            speed = found.get("texts_per_second")
            yield cells(what, "accuracy", found["runs"], yards, speed, texts["machine"])
    masks = read(folder, "masks.json")
    for name, about in masks.get("sets", {}).items():
        what = f"`masks.py`: {name}, {about['test_images']} test images"
        speed = about.get("images_per_second")
        yield cells(what, "dice", about["runs"], "", speed, masks["machine"])
    tables = read(folder, "tables.json")
    for name, about in tables.get("tables", {}).items():
        speed, runs = about.get("rows_per_second"), about["tfgpu"]["runs"]
        for metric in [each for each in ("accuracy", "auc", "r2") if each in runs[0]]:
            yards = f"scikit-learn {about['scikit_learn']['median'][metric]:.3f}"
            what = f"`tables.py`: {name}"
            yield cells(what, metric, runs, yards, speed, tables["machine"])
    for name, about in read(folder, "sounds.json").items():
        vectors = about.get("support_vectors", {})
        yards = ", ".join(
            f"support vectors on {each.replace('_', ' ')} {value:.3f}"
            for each, value in vectors.items()
        )
        what, runs = (
            f"`sounds.py`: {name.replace('-', ', ')}",
            about.get("runs", [about.get("run")]),
        )
        speed = about.get("recordings_per_second")
        yield cells(what, "accuracy", runs, yards, speed, about["machine"])
    labels = read(folder, "labels.json")
    if labels:
        runs, linear = labels["tfgpu"]["runs"], labels["logistic_regression"]["median"]
        for metric in ("map", "macro_f1"):
            yards = f"logistic regression {linear[metric]:.3f}"
            if metric == "map":
                yards += f", knowing nothing {linear['map_of_nothing']:.3f}"
            speed = labels["images_per_second"]
            what = "`labels.py`: collages of real digits"
            yield cells(what, metric, runs, yards, speed, labels["machine"])
    boxes = read(folder, "detection.json")
    if "shapes" in boxes:
        about = boxes["shapes"]
        what = "`detection.py`: generated shapes"
        yield cells(what, "map_50", about["runs"], "", boxes.get("speed"), about["machine"])
    trees = boxes.get("trees", {})
    for name, about in trees.items():
        if name != "machine":
            what = f"`detection.py`: trees, {Path(name).stem} held out"
            yield cells(what, "map_50", about["runs"], "", None, trees["machine"])


def page(folder: Path = HERE / "results") -> str:
    """The README.

    Args:
        folder: Of the results files.
    """
    rungs = sorted(_rungs(folder), key=lambda rung: (rung[0] == "cifar10", rung[:2]))
    head = ["recipe", "command", "parameters", "operations", "epochs", "accuracy"]
    head += ["training", "process", "hardware, date"]
    parts = [_HEAD, table(head, [cells for _, _, cells in rungs]), _JPEG]
    rows = list(_task_rows(folder))
    if rows:
        head = ["task", "test", "beside it", "process", "tfgpu over Keras", "hardware, date"]
        parts += [_TASKS, table(head, rows)]
    return "".join(parts)


def main() -> None:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    found = page()
    if not parser.parse_args().check:
        README.write_text(found, encoding="utf-8")
    elif not README.exists() or README.read_text(encoding="utf-8") != found:
        sys.exit("experiments/README.md is not what experiments/ladder.py writes: run it")


if __name__ == "__main__":
    main()
