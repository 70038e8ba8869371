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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cli import startup
from tfgpu.cli.console import Console
from tfgpu.data.examples import RESIZE_RULE, Examples, data_errors
from tfgpu.export import gate, litert_file
from tfgpu.export.formats import FILES, Source
from tfgpu.export.inference_model import INPUT, OUTPUT, in_float32, inference_model
from tfgpu.export.runtimes import LOADERS, Predict, keras_function
from tfgpu.export.settings import ExportSettings
from tfgpu.machine import runtime


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
    directory = Path(config.out).expanduser() if config.out else run.path / "export"
    files.make_directory(directory, flag="out")
    with contextlib.suppress(RuntimeError):  # The process may have used its devices already.
        tf.config.set_visible_devices([], "GPU")
    machine = runtime.start(strategy="one_device", devices="CPU:0")
    threads = machine.intra_op_threads or os.cpu_count() or 1
    data = run.load_data(dataset=config.dataset, data_dir=config.data_dir)
    model = run.load_model(builder=config.model)
    plain = in_float32(model)
    source = Source(
        model=inference_model(plain, image_shape=run.image_shape),
        class_names=run.class_names,
        preprocessing=_preprocessing(run.image_shape),
        calibration=(
            _calibration(data.train, config.calibration_examples, seed=run.config["seed"])
            if "litert_int8" in config.chosen_formats
            else None
        ),
    )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as work:
        written = [_File(kind, Path(work) / FILES[kind][0]) for kind in config.chosen_formats]
        runtimes: dict[str, Predict] = {}
        for file in written:
            console.say(f"writing {file.path.name}")
            with _quiet(config.verbosity):
                _write(file, source)
                if not file.problem:
                    _load(file, runtimes, threads=threads)
        reference = keras_function(_with_softmax(plain))
        if plain is not model:
            runtimes["the run's model"] = keras_function(_with_softmax(model))
        with data_errors(), _quiet(config.verbosity):
            batches = data.test.dataset().batch(gate.THROUGHPUT_BATCH)
            own, others = gate.compare(runtimes, reference, batches.as_numpy_iterator())
            some = next(iter(batches.as_numpy_iterator()))[0]
            figures = {
                name: _figures(others[name]) | gate.measure(predict, some)
                for name, predict in runtimes.items()
            }
            own_figures = _figures(own) | gate.measure(reference, some)
        for file in written:
            if file.kind in others:
                file.found |= figures[file.kind]
                file.problem = file.problem or gate.verdict(
                    file.kind,
                    others[file.kind],
                    own,
                    max_difference=config.max_difference,
                    max_accuracy_difference=config.max_accuracy_difference,
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
        "class_names": list(run.class_names),
        "preprocessing": source.preprocessing,
        "reference": {"format": "Keras model in float32", "verdict": "", **own_figures},
        "run_model": (
            {
                "format": "the run's model",
                "verdict": f"{run.config.get('precision')}, for comparison",
                **figures["the run's model"],
            }
            if plain is not model
            else None
        ),
        "files": published,
    }
    with files.replacing(directory / "labels.txt") as beside:
        beside.write_text(source.labels, encoding="utf-8")
    files.write_json(directory / "export.json", result)
    rows = [result["reference"], result["run_model"], *published]
    console.say(gate.table(row for row in rows if row))
    console.say(f"compared over {own.examples:,} test examples; everything is in {directory}")
    return result


def _preprocessing(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """What to do to an image before it goes in, as JSON holds it."""
    height, width, channels = image_shape
    return {
        "input": INPUT,
        "dtype": "uint8",
        "shape": ["batch", height, width, channels],
        "channels": "grey" if channels == 1 else "RGB",
        "range": [0, 255],
        "resize": RESIZE_RULE,
        "normalisation": "none: it is part of the model",
        "output": OUTPUT,
    }


def _calibration(examples: Examples, count: int, *, seed: int) -> np.ndarray:
    """Training images (count, height, width, channels), drawn by the seed."""
    # RandomState's stream is frozen by NumPy's compatibility policy.
    drawn = np.random.RandomState(seed).permutation(examples.num_examples)[:count]
    images, _ = examples.take(np.sort(drawn)).load_arrays()
    return images


def _with_softmax(model: keras.Model) -> Callable[..., tf.Tensor]:
    """The probabilities that a model's logits mean, by another way than the exported one."""

    def call(images: tf.Tensor, training: bool) -> tf.Tensor:
        logits = model(tf.cast(images, tf.float32), training=training)
        return tf.nn.softmax(tf.cast(logits, tf.float32))

    return call


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


def _figures(found: gate.Comparison) -> dict[str, Any]:
    return {
        "max_difference": found.max_difference,
        "agreement": found.agreement,
        "accuracy": found.accuracy,
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
