"""`tfgpu evaluate` from beginning to end: devices, model, data, evaluation, files, report.

What is measured and shown is the report of the run's task.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cli.console import Console
from tfgpu.cluster.membership import Membership, alone
from tfgpu.data.examples import Examples, data_errors
from tfgpu.data.inputs import evaluation_batches
from tfgpu.errors import RequestError, WorkError
from tfgpu.evaluate.settings import EvaluateSettings
from tfgpu.machine import runtime
from tfgpu.models.views import averaged
from tfgpu.tasks.loading import Dataset
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard.predictions import outputs_of

BATCH = 256
"""Examples per batch, over all replicas; the results do not depend on it."""

PREDICTED = 4096
"""Examples whose outputs are held at once, for reports that read them: at most."""

PREDICTED_BYTES = 2**28
"""Bytes that those outputs may take, but for a batch, which is always held."""

NO_PLOTS = "no pictures are drawn without matplotlib: pip install 'tfgpu[plots]'"


def evaluate(
    config: EvaluateSettings,
    run: TrainedRun,
    *,
    console: Console,
    members: Membership | None = None,
) -> dict[str, Any]:
    """Evaluates the model of a run, and writes and prints the result.

    Of several workers each evaluates a part of the examples by itself. Metrics are sums over
    examples, which the chief adds up; it alone writes and prints.

    Args:
        config: The settings.
        run: The run in `--run_dir`.
        console: Where messages go.
        members: The processes that work together; None for one by itself.

    Returns:
        The contents of `evaluation.json`; {} in a worker that is not the chief.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    members = members or alone()
    machine = runtime.start(
        # Nothing is exchanged within a step.
        strategy=config.strategy if members.alone else "mirrored",
        processes=members.sharing_cores,
        devices=config.devices,
        virtual_devices=config.virtual_devices,
        jit_compile=config.jit_compile,
    )
    batch_size = _batch_size(config, machine)
    with machine.strategy.scope():
        model = run.load_model(builder=config.model, task=config.task)
        try:
            model = averaged(model, config.views)
        except ValueError as error:
            raise RequestError(
                f"--views={config.views} is of classifiers of images: {error}; leave it out"
            ) from None
    data = run.load_data(dataset=config.dataset, data_dir=config.data_dir, task=config.task)
    name = f"{files.file_name(data.name)}-{config.split}"
    name = name if config.views == "one" else f"{name}-{config.views}"
    directory = (
        Path(config.out).expanduser()
        if config.out
        else free_directory(run.path / "evaluation" / name, dataset=data.name)
    )
    if members.is_chief:
        files.make_directory(directory, flag="out")
    _check_data(members, data)
    chosen = _choose_splits(data, config.split)
    if members.is_chief:
        for note in (note for each in chosen for note in each.notes):
            print(f"tfgpu: {note}", file=sys.stderr)
    report = data.task.report(run.spec)
    _compile(model, run, data, report, machine)
    if members.is_chief:
        for note in data.storage_notes:
            print(f"tfgpu: {note}", file=sys.stderr)
    if (
        members.is_chief
        and data.name == run.dataset.get("name")
        and data.fingerprint != run.dataset["fingerprint"]
    ):
        print(
            f"tfgpu: warning: {data.name} has changed since the run: the test split may hold "
            f"{data.task.unit} that the model was trained on",
            file=sys.stderr,
        )
    with _failures(batch_size):
        examples, logs = _evaluate(
            model, chosen, report, batch_size=batch_size, machine=machine, members=members
        )
    replicas = sum(members.finish("replicas", machine.num_replicas))
    if not members.is_chief:
        console.say(f"done; {members.name(0)} has the result")
        return {}
    loss = logs.pop("loss")
    if not math.isfinite(loss):
        raise WorkError(f"the model of {run.path} gives values that are not finite")
    result = {
        "run_dir": str(run.path),
        "dataset": data.name,
        "version": data.version,
        "fingerprint": data.fingerprint,
        "split": config.split,
        **({} if config.views == "one" else {"views": config.views}),
        "examples": examples,
        "loss": loss,
        **report.figures(logs),
        "strategy": config.strategy,
        "replicas": replicas,
        **report.details(),
    }
    written = _write(result, report, directory)
    console.say(json.dumps(result) if config.json else describe(result, report))
    if not config.json:
        console.say(f"written: {', '.join(str(path) for path in written)}")
    if report.draws and not any(path.suffix == ".png" for path in written):
        print(f"tfgpu: {NO_PLOTS}", file=sys.stderr)
    return result


def _evaluate(
    model: keras.Model,
    splits: list[Examples],
    report: Report,
    *,
    batch_size: int,
    machine: runtime.Runtime,
    members: Membership,
) -> tuple[int, dict[str, float]]:
    """Evaluates splits as one, of several workers each a part of each split.

    Returns:
        The number of examples, and the loss and the metrics over all of them.
    """
    loss, total = 0.0, 0
    sums: list[np.ndarray] = []
    logs: dict[str, float] = {}
    for examples in splits:
        part = _part(examples, members)
        part_loss = 0.0
        model.reset_metrics()
        if part is not None:
            batches = evaluation_batches(part, batch_size=batch_size)
            logs = model.evaluate(batches, verbose=0, return_dict=True)
            part_loss = logs["loss"] * part.num_examples
        values = [np.asarray(variable.numpy()) for variable in model.metrics_variables]
        if not members.alone:
            gathered = _sum_at_chief(members, [np.asarray(part_loss), *values])
            if gathered is None:
                continue
            part_loss, values = float(gathered[0]), gathered[1:]
            _assign(model, values, machine)
        loss += part_loss
        total += examples.num_examples
        report.end_split()
        sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
        if report.reads_outputs:
            _read_outputs(model, examples, report, batch_size=batch_size)
    if not members.is_chief:
        return 0, {}
    if len(splits) > 1 or not members.alone:
        # The variables of metrics are sums over examples.
        _assign(model, sums, machine)
        logs = {name: float(value) for name, value in model.get_metrics_result().items()}
    return total, {**logs, "loss": loss / total}


def _part(examples: Examples, members: Membership) -> Examples | None:
    """This worker's part of a split; None where there are fewer examples than workers."""
    if members.alone:
        return examples
    edges = [examples.num_examples * rank // members.size for rank in range(members.size + 1)]
    own = np.arange(edges[members.rank], edges[members.rank + 1])
    return examples.take(own) if len(own) else None


def _sum_at_chief(members: Membership, values: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Adds up arrays of all workers, the same ones in each; None but at the chief."""
    gathered = members.gather("sums", None, b"".join(value.tobytes() for value in values))
    if gathered is None:
        return None
    sums = [np.zeros_like(value) for value in values]
    for message in gathered:
        start = 0
        for total in sums:
            piece = np.frombuffer(message.body, total.dtype, count=total.size, offset=start)
            total += piece.reshape(total.shape)
            start += total.nbytes
    return sums


def _assign(model: keras.Model, values: Sequence[np.ndarray], machine: runtime.Runtime) -> None:
    with machine.strategy.scope():
        for variable, value in zip(model.metrics_variables, values, strict=True):
            variable.assign(value)


def _check_data(members: Membership, data: Dataset) -> None:
    """Compares the data sets of all workers.

    Raises:
        RequestError: They differ, in every process alike.
    """
    found = members.exchange("data", data.fingerprint)
    for rank, other in enumerate(found):
        if other != found[0]:
            raise RequestError(
                f"the workers have other data: fingerprint {found[0]} at {members.name(0)} and "
                f"{other} at {members.name(rank)}; give all of them the same data set"
            )


def _read_outputs(
    model: keras.Model, examples: Examples, report: Report, *, batch_size: int
) -> None:
    """Gives a report the outputs for a split, some of them at a time."""
    # Of a map, an image may have megabytes.
    shapes = [tensor.shape[1:] for tensor in tf.nest.flatten(model.outputs)]
    each = 4 * sum(math.prod(side or 1 for side in shape) for shape in shapes)
    held = min(max(PREDICTED_BYTES // each, batch_size), PREDICTED)
    for first in range(0, examples.num_examples, held):
        last = min(first + held, examples.num_examples)
        batches = evaluation_batches(examples.take(np.arange(first, last)), batch_size=batch_size)
        for x, y, outputs in outputs_of(model, batches):
            report.add(x, y, outputs)


def free_directory(first: Path, *, dataset: str) -> Path:
    """A directory for an evaluation, which is not that of another data set of the same short name.

    Args:
        first: The directory whose name says what it is of.
        dataset: The whole name of the data set, such as `folder:here/cats`.

    Returns:
        `first`, or with a number from 2 on behind its name: what is new, or holds an earlier
        evaluation of this data set, to be replaced.
    """
    place, number = first, 1
    while True:
        try:
            found = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return place
        if not isinstance(found, dict) or found.get("dataset") == dataset:
            return place
        number += 1
        place = first.with_name(f"{first.name}-{number}")


def describe(result: Mapping[str, Any], report: Report) -> str:
    """Formats a result as lines of text.

    Args:
        result: The contents of `evaluation.json`.
        report: Of the task.
    """
    head = f"{result['dataset']}, split {result['split']}: {result['examples']:,} examples"
    return "\n".join([head, *report.lines(result)])


def _batch_size(config: EvaluateSettings, machine: runtime.Runtime) -> int:
    if config.batch_size is None:
        return -(-BATCH // machine.num_replicas) * machine.num_replicas
    machine.check_batch(config.batch_size)
    return config.batch_size


def _compile(
    model: keras.Model, run: TrainedRun, data: Dataset, report: Report, machine: runtime.Runtime
) -> None:
    """Compiles the model with the run's loss and the metrics of the report."""
    with machine.strategy.scope():
        metrics = report.metrics()
        model.compile(
            loss=data.task.loss(run.spec, run.config),
            metrics=list(data.task.metrics(run.spec) if metrics is None else metrics),
            jit_compile=machine.jit_compile,
        )


def _choose_splits(data: Dataset, split: str) -> list[Examples]:
    if split == "all":
        return [each for each in (data.train, data.validation, data.test) if each is not None]
    chosen = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    if chosen is None:
        raise RequestError(
            "--split=validation: the run held nothing back for validation "
            "(--validation_fraction=0); choose test, train or all"
        )
    return [chosen]


def _write(result: Mapping[str, Any], report: Report, directory: Path) -> list[Path]:
    """Writes the files, and returns them."""
    path = directory / "evaluation.json"
    files.write_json(path, result)
    written = [path]
    for name, content in report.files(result).items():
        place = directory / name
        with files.replacing(place) as beside:
            beside.write_bytes(content)
        written.append(place)
    return written


@contextmanager
def _failures(batch_size: int) -> Iterator[None]:
    """Turns TensorFlow's errors of memory and damaged data into errors of one line."""
    try:
        with data_errors():
            yield
    except tf.errors.ResourceExhaustedError as error:
        raise WorkError(f"out of memory with --batch_size={batch_size}; lower it") from error
