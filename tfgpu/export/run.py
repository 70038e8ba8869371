"""One export: from the settings to files that have been compared with the model.

Reads top to bottom: run, data, model, files beside their places, the gate, files in their places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cli import startup
from tfgpu.cli.console import Console
from tfgpu.data.examples import Examples, data_errors
from tfgpu.export import gate, litert_file
from tfgpu.export.formats import FILES, Source
from tfgpu.export.inference_model import in_float32
from tfgpu.export.runtimes import LOADERS, Predict, compiled
from tfgpu.export.settings import ExportSettings
from tfgpu.machine import runtime
from tfgpu.tasks.parts.serving import Serving

_RUN_MODEL = "the run's model"
_X = "x"  # Of what gets x as it is, among raw inputs.


@dataclasses.dataclass
class _File:
    """One format on its way.

    Attributes:
        kind: The format.
        path: Where it lies before the gate.
        problem: Why it is not accepted; "" when it is.
        found: What export.json says of it.
    """

    kind: str
    path: Path
    problem: str = ""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)


def export(config: ExportSettings, run: TrainedRun, *, console: Console) -> dict[str, Any]:
    """Writes the formats, compares each file with the model, and says what it found.

    Everything runs on the CPU, the Keras model too: the runtimes of the other formats do here,
    and a GPU that multiplies in TF32 would be a difference of its own.

    Args:
        config: The settings.
        run: What `--run_dir` holds.
        console: Where the command speaks.

    Returns:
        What `export.json` holds.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    directory = config.directory(run.path)
    files.make_directory(directory, flag="out")
    with contextlib.suppress(RuntimeError):  # The process may have used its devices already.
        tf.config.set_visible_devices([], "GPU")
    machine = runtime.start(strategy="one_device", devices="CPU:0")
    threads = machine.intra_op_threads or os.cpu_count() or 1
    task = run.task(config.task)
    data = run.load_data(dataset=config.dataset, data_dir=config.data_dir, task=config.task)
    unit = data.task.unit
    model = run.load_model(builder=config.model, task=config.task)
    plain = in_float32(model)
    servings = {kind: task.serve(run.spec, kind) for kind in ("", *config.chosen_formats)}
    own_serving = servings[""]
    kinds = []
    for kind in config.chosen_formats:
        if servings[kind].refused and config.formats == "all":  # All that there are of the task.
            console.say(f"no {FILES[kind][0]}: {servings[kind].refused}")
        else:
            kinds.append(kind)
    calibration = (
        _calibration(data.train, config.calibration_examples, seed=run.config["seed"])
        if "litert_int8" in kinds
        else None
    )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as work:
        written = [_File(kind, Path(work) / FILES[kind][0]) for kind in kinds]
        runtimes: dict[str, Predict] = {}
        for file in written:
            console.say(f"writing {file.path.name}")
            serving = servings[file.kind]
            with _quiet(config.verbosity):
                if serving.refused:
                    file.problem = f"cannot be made: {serving.refused}"
                else:
                    source = Source(
                        model=serving.model(plain),
                        class_names=run.spec.class_names,
                        preprocessing=serving.preprocessing,
                        files=serving.files,
                        calibration=None if calibration is None else _raw(serving, calibration),
                    )
                    _write(file, source)
                if not file.problem:
                    _load(file, runtimes, threads=threads)
        reference = compiled(own_serving.reference(plain))
        if plain is not model:
            run_model = compiled(own_serving.reference(model))
            runtimes[_RUN_MODEL] = lambda raw: run_model(raw[_X])
            servings[_RUN_MODEL] = dataclasses.replace(own_serving, inputs={_X: None})
        with data_errors(), _quiet(config.verbosity):
            own, others = gate.compare(runtimes, reference, _batches(data.test, servings), servings)
            x, raw, _ = next(_batches(data.test, servings))
            figures = {
                name: _figures(others[name], own_serving)
                | gate.measure(predict, {key: raw[key] for key in servings[name].inputs}, unit=unit)
                for name, predict in runtimes.items()
            }
            own_figures = _figures(own, own_serving) | gate.measure(reference, x, unit=unit)
        for file in written:
            if file.kind in others:
                file.found |= figures[file.kind]
                file.problem = file.problem or gate.verdict(
                    file.kind,
                    others[file.kind],
                    own,
                    max_difference=config.max_difference,
                    max_accuracy_difference=config.max_accuracy_difference,
                    unit=own_serving.unit,
                    measure=own_serving.measure,
                )
        published = [_publish(file, directory) for file in written]
    result: dict[str, Any] = {
        "run_dir": str(run.path),
        "dataset": data.name,
        "split": "test",
        "examples": own.examples,
        "precision": run.config.get("precision"),
        "max_difference": config.max_difference,
        "max_accuracy_difference": config.max_accuracy_difference,
        "hardware": machine.device_descriptions[0],
        "threads": threads,
        "versions": _versions(),
        "class_names": list(run.spec.class_names),
        "preprocessing": dict(own_serving.preprocessing),
        "reference": {"format": "Keras model in float32", "verdict": "", **own_figures},
        "run_model": (
            {
                "format": _RUN_MODEL,
                "verdict": f"{run.config.get('precision')}, for comparison",
                **figures[_RUN_MODEL],
            }
            if plain is not model
            else None
        ),
        "files": published,
    }
    beside_it = dict(own_serving.files)
    if run.spec.class_names:
        beside_it["labels.txt"] = "".join(f"{name}\n" for name in run.spec.class_names)
    for name, text in beside_it.items():
        with files.replacing(directory / name) as beside:
            beside.write_text(text, encoding="utf-8")
    files.write_json(directory / "export.json", result)
    rows = [result["reference"], result["run_model"], *published]
    shown = (row for row in rows if row)
    console.say(gate.table(shown, measure=own_serving.measure, unit=unit))
    console.say(f"compared over {own.examples:,} test examples; everything is in {directory}")
    return result


def _calibration(examples: Examples, count: int, *, seed: int) -> Any:
    """(x, raw inputs) of training examples drawn by the seed; raw inputs are None where x is."""
    # RandomState's stream is frozen by NumPy's compatibility policy.
    drawn = np.random.RandomState(seed).permutation(examples.num_examples)[:count]
    some = examples.take(np.sort(drawn))
    if some.decode_raw is None:
        return some.load_arrays()[0]
    return dict(_raw_examples(some).load_arrays()[0])


def _raw(serving: Serving, values: Any) -> dict[str, np.ndarray]:
    """Raw inputs of examples: those values by name, or x."""
    if isinstance(values, Mapping) and serving.inputs.keys() <= values.keys():
        return {name: values[name] for name in serving.inputs}
    return serving.raw(values)


def _raw_examples(examples: Examples) -> Examples:
    """Examples of which x is the raw inputs, and y nothing."""
    raw = examples.decode_raw
    assert raw is not None
    return dataclasses.replace(examples, decode=lambda *parts: (raw(*parts), ()), decode_batch=None)


def _batches(
    examples: Examples, servings: Mapping[str, Serving]
) -> Iterator[tuple[Any, dict[str, np.ndarray], Any]]:
    """Yields (x, raw inputs by name, y) in batches of `gate.THROUGHPUT_BATCH`."""
    pairs = examples.dataset()
    if examples.decode_raw is not None:
        pairs = tf.data.Dataset.zip(pairs, _raw_examples(examples).dataset())
        for (x, y), (raw, _) in pairs.batch(gate.THROUGHPUT_BATCH).as_numpy_iterator():
            yield x, {**raw, _X: x}, y
        return
    for x, y in pairs.batch(gate.THROUGHPUT_BATCH).as_numpy_iterator():
        raw = {_X: x}
        for serving in servings.values():
            if _X not in serving.inputs:
                raw |= serving.raw(x)
        yield x, raw, y


def _write(file: _File, source: Source) -> None:
    try:
        FILES[file.kind][1](source, file.path)
    except (OSError, MemoryError):
        raise
    # A converter raises whatever its parts raise over a layer it does not know; the other
    # formats go on.
    except Exception as error:
        file.problem = f"cannot be made: {_first_line(error)}"


def _load(file: _File, runtimes: dict[str, Predict], *, threads: int) -> None:
    try:
        runtimes[file.kind] = LOADERS[file.kind](file.path, threads)
        if file.kind.startswith("litert"):
            inspected = litert_file.inspect(file.path)
            file.found |= dataclasses.asdict(inspected)
            if file.kind == "litert_int8" and inspected.float_operators:
                file.problem = f"computes in float: {', '.join(inspected.float_operators)}"
    except MemoryError:
        raise
    except Exception as error:
        file.problem = f"cannot be loaded: {_first_line(error)}"
    file.found["bytes"] = _size(file.path)


def _publish(file: _File, directory: Path) -> dict[str, Any]:
    """Moves a file to its path, or to that of a rejected one, and returns its entry.

    What an earlier export left at the other path goes: it was made of another model. Only the
    versions of a SavedModel stay, of which a server may be using one.
    """
    accepted = directory / file.path.name
    rejected = accepted.with_name(f"{accepted.stem}.rejected{accepted.suffix}")
    final, other = (rejected, accepted) if file.problem else (accepted, rejected)
    made = file.path.exists()
    if made and file.kind == "saved_model":
        _remove(rejected)
        final.mkdir(exist_ok=True)
        # TensorFlow Serving loads the highest number, and lets go of the one before.
        numbers = [int(each.name) for each in final.iterdir() if each.name.isdecimal()]
        final = final / str(max(numbers, default=0) + 1)
        os.rename(file.path, final)
    elif made:
        _remove(other)
        os.replace(file.path, final)
    return {
        "format": file.kind,
        "path": str(final) if made else None,
        "accepted": not file.problem,
        "verdict": f"rejected: {file.problem}" if file.problem else "accepted",
        **file.found,
    }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _figures(found: gate.Comparison, serving: Serving) -> dict[str, Any]:
    return {
        "max_difference": found.max_difference,
        "agreement": found.agreement,
        serving.measure: found.accuracy,
    }


def _size(path: Path) -> int:
    found = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in found if each.is_file())


def _versions() -> dict[str, str]:
    found = {}
    for name in ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quiet(verbosity: int) -> Iterator[None]:
    """Keeps what the converters say to themselves from standard error."""
    if verbosity:
        yield
        return
    with startup.stderr_aside(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
