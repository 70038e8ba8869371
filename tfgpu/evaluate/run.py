"""`tfgpu evaluate` from beginning to end: devices, model, data, evaluation, files, report."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cli.console import Console
from tfgpu.data import sources
from tfgpu.data.examples import Examples, data_errors
from tfgpu.data.inputs import evaluation_batches
from tfgpu.errors import RequestError, WorkError
from tfgpu.evaluate.metrics import ClassificationMetrics, Counts
from tfgpu.evaluate.settings import EvaluateSettings
from tfgpu.machine import runtime
from tfgpu.models.classification_loss import classification_loss

BATCH = 256
"""Examples per batch, over all replicas; the results do not depend on it."""

SHOWN = 25
"""Classes in the table, at most: of more, those with the least recall are shown."""

NO_PLOTS = "no pictures are drawn without matplotlib: pip install 'tfgpu[plots]'"


def evaluate(config: EvaluateSettings, run: TrainedRun, *, console: Console) -> dict[str, Any]:
    """Evaluates the model of a run, and writes and prints the result.

    Args:
        config: The settings.
        run: The run in `--run_dir`.
        console: Where messages go.

    Returns:
        The contents of `evaluation.json`.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    machine = runtime.start(
        strategy=config.strategy,
        devices=config.devices,
        virtual_devices=config.virtual_devices,
        jit_compile=config.jit_compile,
    )
    batch_size = _batch_size(config, machine)
    with machine.strategy.scope():
        model = run.load_model(builder=config.model)
    data = run.load_data(dataset=config.dataset, data_dir=config.data_dir)
    own = run.path / "evaluation" / f"{files.file_name(data.name)}-{config.split}"
    directory = Path(config.out).expanduser() if config.out else own
    files.make_directory(directory, flag="out")
    chosen = _choose_splits(data, config.split)
    metrics = _compile(model, run, machine)
    if data.name == run.dataset.get("name") and data.fingerprint != run.dataset["fingerprint"]:
        print(
            f"tfgpu: warning: {data.name} has changed since the run: the test split may hold "
            "images that the model was trained on",
            file=sys.stderr,
        )
    loss = 0.0
    counts: Counts | None = None
    with _failures(batch_size):
        for examples in chosen:
            batches = evaluation_batches(examples, batch_size=batch_size)
            logs = model.evaluate(batches, verbose=0, return_dict=True)
            loss += logs["loss"] * examples.num_examples
            counts = metrics.counts() if counts is None else counts + metrics.counts()
    assert counts is not None
    loss /= counts.examples
    if not math.isfinite(loss):
        raise WorkError(f"the model of {run.path} gives values that are not finite")
    result = {
        "run_dir": str(run.path),
        "dataset": data.name,
        "version": data.version,
        "fingerprint": data.fingerprint,
        "split": config.split,
        "examples": counts.examples,
        "loss": loss,
        "accuracy": counts.accuracy,
        "top_5_accuracy": counts.top_k_accuracy,
        "expected_calibration_error": counts.calibration_error,
        "strategy": config.strategy,
        "replicas": machine.num_replicas,
        "classes": counts.by_class(data.class_names),
        "reliability": counts.reliability(),
        "confusion_matrix": [[round(count) for count in row] for row in counts.confusion.tolist()],
    }
    written = _write(result, directory)
    console.say(json.dumps(result) if config.json else describe(result))
    if not config.json:
        console.say(f"written: {', '.join(str(path) for path in written)}")
    if not any(path.suffix == ".png" for path in written):
        print(f"tfgpu: {NO_PLOTS}", file=sys.stderr)
    return result


def describe(result: Mapping[str, Any]) -> str:
    """Formats a result as lines of text.

    Args:
        result: The contents of `evaluation.json`.
    """
    lines = [
        f"{result['dataset']}, split {result['split']}: {result['examples']:,} examples",
        f"loss      {result['loss']:.4f}",
        f"accuracy  {result['accuracy']:.4f}  (top 5: {result['top_5_accuracy']:.4f})",
        f"expected calibration error  {result['expected_calibration_error']:.4f}",
        "",
    ]
    classes = result["classes"]
    if len(classes) > SHOWN:
        lines.append(f"the {SHOWN} of {len(classes)} classes with the least recall:")
        classes = sorted(classes, key=lambda each: (each["recall"] is None, each["recall"]))
        classes = classes[:SHOWN]
    wide = max(len("class"), *(len(each["name"]) for each in classes))
    lines.append(f"{'class':<{wide}}  precision  recall      f1  examples")
    lines += [
        f"{each['name']:<{wide}}  {_ratio(each['precision']):>9}  {_ratio(each['recall']):>6}"
        f"  {_ratio(each['f1']):>6}  {each['examples']:>8,}"
        for each in classes
    ]
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _batch_size(config: EvaluateSettings, machine: runtime.Runtime) -> int:
    if config.batch_size is None:
        return -(-BATCH // machine.num_replicas) * machine.num_replicas
    machine.check_batch(config.batch_size)
    return config.batch_size


def _compile(
    model: keras.Model, run: TrainedRun, machine: runtime.Runtime
) -> ClassificationMetrics:
    """Compiles the model with the run's loss and the metrics."""
    classes = len(run.class_names)
    with machine.strategy.scope():
        metrics = ClassificationMetrics(num_classes=classes, k=min(5, classes))
        model.compile(
            loss=classification_loss(
                num_classes=classes, label_smoothing=run.config["label_smoothing"]
            ),
            metrics=[metrics],
            jit_compile=machine.jit_compile,
        )
    return metrics


def _choose_splits(data: sources.ImageDataset, split: str) -> list[Examples]:
    if split == "all":
        return [each for each in (data.train, data.validation, data.test) if each is not None]
    chosen = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    if chosen is None:
        raise RequestError(
            "--split=validation: the run held nothing back for validation "
            "(--validation_fraction=0); choose test, train or all"
        )
    return [chosen]


def _write(result: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes the files, and returns them."""
    path = directory / "evaluation.json"
    files.write_json(path, result)
    table = directory / "confusion_matrix.csv"
    names = [each["name"] for each in result["classes"]]
    rows = [["label \\ predicted", *names]]
    rows += [[name, *row] for name, row in zip(names, result["confusion_matrix"], strict=True)]
    with files.replacing(table) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    try:
        from tfgpu.evaluate import plots
    except ImportError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return [path, table]
    return [path, table, *plots.draw(result, directory)]


@contextmanager
def _failures(batch_size: int) -> Iterator[None]:
    """Turns TensorFlow's errors of memory and damaged data into errors of one line."""
    try:
        with data_errors():
            yield
    except tf.errors.ResourceExhaustedError as error:
        raise WorkError(f"out of memory with --batch_size={batch_size}; lower it") from error
