"""The claims of `evidence.py` about a finished model: its files, their latency, other backends.

    python experiments/evidence_serving.py WORK REQUEST_JSON

is what it runs in processes of their own: `export_network`, `examples` and `latency`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evidence_rows import counted, missing, ratios, row
from evidence_training import FEWEST, Place

from tfgpu.cli import startup

BUDGET = 33.0
"""Milliseconds of a frame at 30 frames a second."""

PATIENCE = 600.0
"""Seconds that a process may take."""

HERE = Path(__file__).resolve()
FILES = {
    "keras": "model.keras",
    "saved_model": "saved_model/1",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_int8": "model_int8.tflite",
}
NETWORKS = {"MobileNetV2": "mobilenet", "resnet50": "resnet50"}
"""Networks for images of 224x224 with weights as they are drawn; the folders of their files."""

RUNTIMES = {
    "keras": "Keras file, compiled",
    "predict": "Keras predict",
    "saved_model": "SavedModel",
    "onnx": "ONNX",
    "litert": "LiteRT",
    "litert_float16": "LiteRT, float16",
    "litert_int8": "LiteRT, int8",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A finished run and its files, made when first asked for.

    Attributes:
        place: Where.
        run_dir: The run of the user's; None: `lenet` is trained on the digits.
    """

    place: Place
    run_dir: Path | None = None

    @functools.cached_property
    def run(self) -> Path:
        """The run directory."""
        if self.run_dir is not None:
            return self.run_dir
        directory = self.place.folder / "run"
        flags = ["--dataset=digits", "--model=lenet", "--tensorboard=none", "--progress=none"]
        _python("-m", "tfgpu.train", *flags, f"--run_dir={directory}")
        return directory

    @functools.cached_property
    def exported(self) -> dict[str, Any]:
        """What export.json holds; the files lie beside it in `files`."""
        # Exit code 1 says that a file was set aside, which its row says too.
        arguments = (f"--run_dir={self.run}", f"--out={self.files}")
        _python("-m", "tfgpu.export", *arguments, allowed=(0, 1))
        found: dict[str, Any] = json.loads((self.files / "export.json").read_text())
        return found

    @property
    def files(self) -> Path:
        """The folder of the exported files."""
        return self.place.folder / "export"

    @functools.cached_property
    def about(self) -> str:
        """Its name for tables."""
        result = json.loads((self.run / "result.json").read_text())
        return f"{result['model']} on {result['dataset']}"


def _python(*words: str, allowed: tuple[int, ...] = (0,), **variables: str) -> str:
    """Runs this interpreter; returns what it printed last.

    Raises:
        RuntimeError: It failed; the last line that it said.
    """
    return _interpreter(sys.executable, *words, allowed=allowed, **variables)


def _interpreter(
    python: str, *words: str, allowed: tuple[int, ...] = (0,), **variables: str
) -> str:
    try:
        done = subprocess.run(
            [python, *words],
            env=startup.child_environment() | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {PATIENCE:.0f} s") from None
    if done.returncode not in allowed:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        raise RuntimeError(f"exit code {done.returncode}: {said[-1][:300]}")
    return (done.stdout.splitlines() or [""])[-1]


def _work(kind: str, **request: Any) -> Any:
    """Does one of `WORK` in a process of its own."""
    return json.loads(_python(str(HERE), kind, json.dumps(request)))


# ---- the claims --------------------------------------------------------------------------------


def compression(place: Place, model: Model) -> list[dict[str, Any]]:
    """The LiteRT files with weights of float16 and int8 beside the one of float32."""
    files = {each["format"]: each for each in model.exported["files"]}
    examples, rows = model.exported["examples"], []
    full, about = files["litert"], model.about
    names = {"litert_float16": "float16", "litert_int8": "int8"}
    timed = _latency(place, {kind: model.files / FILES[kind] for kind in ("litert", *names)})
    if not full["accepted"]:
        return [missing(f"{about}: the file in float32", full["verdict"])]
    for kind, name in names.items():
        file, what = files[kind], f"{about}: {name} over float32, "
        if "bytes" not in file or "accuracy" not in file:
            rows.append(missing(f"{what}bytes", file["verdict"]))
            continue
        bound = 0.55 if name == "float16" else 0.35
        share = file["bytes"] / full["bytes"]
        sizes = {"bytes": file["bytes"], "base_bytes": full["bytes"]}
        claim = {"side": "at most", "bound": bound}
        rows.append(
            counted(
                f"{what}bytes of the file", share, n=1, unit="times the bytes", **claim, **sizes
            )
        )
        lost = full["accuracy"] - file["accuracy"]
        rows.append(
            counted(
                f"{what}accuracy lost",
                100 * lost,
                n=examples,
                unit="points",
                side="at most",
                bound=1.0,
                margin=100 * _margin(lost, 1 - file["agreement"], 1 - full["agreement"], examples),
                accuracy=file["accuracy"],
                base_accuracy=full["accuracy"],
            )
        )
        if kind in timed and "litert" in timed:
            rates, base = ([1 / each for each in timed[one]["p50"]] for one in (kind, "litert"))
            rows.append(ratios(f"{what}one image", rates, base, rate_unit="images/s"))
    return rows


def _margin(lost: float, differing: float, base_differing: float, count: int) -> float:
    """Half of a 95 % interval of a difference of accuracies over the same examples.

    The normal interval of a paired difference (A. Agresti, "Categorical Data Analysis", 11.1.1):
    1.96 sqrt((b + c - (b - c)^2) / n), where b + c, the share of examples that one of the two alone
    gets right, is at most the share on which they decide differently.
    """
    discordant = max(abs(lost), min(1.0, differing + base_differing))
    return 1.96 * math.sqrt(max(0.0, discordant - lost**2) / count)


def latency(place: Place, model: Model) -> list[dict[str, Any]]:
    """The time of one image from pixels to probabilities, warm, of each runtime."""
    kinds = ("keras", "saved_model", "onnx", "litert")
    rows = []
    networks: list[tuple[str, Callable[[], Path]]] = [
        (model.about, lambda: (model.exported, model.files)[1]),
        *((f"{name} at 224x224", functools.partial(_network, place, name)) for name in NETWORKS),
    ]
    for about, files in networks:
        try:
            folder = files()
            found = _latency(place, {kind: folder / FILES[kind] for kind in kinds})
        except RuntimeError as error:
            rows.append(missing(f"{about}: one image", str(error)))
            continue
        for kind in ("predict", *kinds):
            name = f"{about}: {RUNTIMES[kind]}"
            if kind not in found:
                rows.append(missing(f"{name}, p99", "its file is not there"))
                continue
            one = found[kind]
            details = {"p50": one["p50"], "calls": one["calls"], "on": one["on"]}
            claim = {"unit": "ms", "side": "at most", "bound": BUDGET}
            rows.append(row(f"{name}, p99", [1e3 * v for v in one["p99"]], **claim, **details))
            rows.append(row(f"{name}, p50", [1e3 * v for v in one["p50"]], unit="ms"))
    return rows


def _network(place: Place, name: str) -> Path:
    """Writes the files of a network; returns their folder."""
    folder = place.folder / NETWORKS[name]
    _work("export_network", name=name, folder=str(folder))
    return folder


def _latency(place: Place, files: Mapping[str, Path]) -> dict[str, Any]:
    there = {kind: str(path) for kind, path in files.items() if path.exists()}
    rounds = max(FEWEST, place.rounds)
    found: dict[str, Any] = _work("latency", files=there, rounds=rounds, seconds=place.seconds)
    return found


def portability(place: Place, model: Model, *, pythons: Mapping[str, str]) -> list[dict[str, Any]]:
    """The same file under other backends and runtimes, over the whole test split.

    Args:
        place: Where.
        model: What is run.
        pythons: Interpreters with Keras and a backend, by "jax" and "torch".
    """
    exported = model.exported
    examples = place.folder / "examples.npz"
    _work("examples", run_dir=str(model.run), out=str(examples))
    rows, about = [], model.about
    expected = _backend(sys.executable, "tensorflow", model, examples)[0]
    for backend, title in (("jax", "JAX"), ("torch", "PyTorch")):
        what = f"{about}: the Keras file under {title}"
        python = pythons.get(backend)
        if python is None:
            rows.append(missing(what, f"no interpreter with Keras and {title} was named"))
            continue
        try:
            found, versions = _backend(python, backend, model, examples)
        except (RuntimeError, OSError) as error:
            rows.append(missing(what, str(error)))
            continue
        difference = float(abs(found - expected).max())
        agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())
        rows += _same(what, difference, agreement, len(found), versions=versions)
    for file in exported["files"]:
        kind = file["format"]
        if kind not in ("saved_model", "onnx", "litert"):
            continue
        what = f"{about}: {RUNTIMES[kind]}"
        if "max_difference" not in file:
            rows.append(missing(what, file["verdict"]))
        else:
            rows += _same(what, file["max_difference"], file["agreement"], exported["examples"])
    return rows


def _same(
    what: str, difference: float, agreement: float, count: int, **details: Any
) -> list[dict[str, Any]]:
    if math.isnan(difference):
        return [missing(f"{what}, probabilities", "a probability is not a number")]
    return [
        counted(
            f"{what}, largest difference of a probability",
            difference,
            **{"n": count, "unit": "", "side": "at most", "bound": 1e-4, **details},
        ),
        counted(
            f"{what}, same class",
            100 * agreement,
            **{"n": count, "unit": "%", "side": "at least", "bound": 100.0, **details},
        ),
    ]


def _backend(python: str, backend: str, model: Model, examples: Path) -> tuple[Any, dict[str, str]]:
    import numpy as np

    out = model.place.folder / f"{backend}.npz"
    hidden = {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    script = str(HERE.parent / "evidence_backend.py")
    # Not with what PYTHONPATH holds for this interpreter.
    arguments = ("-E", script, str(model.files / FILES["keras"]), str(examples), str(out))
    _interpreter(python, *arguments, **hidden, TF_CPP_MIN_LOG_LEVEL="3")
    found = np.load(out)
    return found["probabilities"], json.loads(str(found["versions"]))


# ---- in processes of their own -----------------------------------------------------------------


def export_network(*, name: str, folder: str) -> dict[str, Any]:
    """Writes the files of a network as `tfgpu export` does."""
    import keras

    from tfgpu.export.formats import FILES as WRITERS
    from tfgpu.export.formats import Source
    from tfgpu.models.builders import find_builder
    from tfgpu.tasks.parts import image_serving

    keras.utils.set_random_seed(0)
    shape = (224, 224, 3)
    built = find_builder(name)(image_shape=shape, num_classes=1000)
    source = Source(image_serving.inference_model(built, image_shape=shape), (), {})
    for kind in ("keras", "saved_model", "onnx", "litert"):
        path = Path(folder) / FILES[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[kind][1](source, path)
    return {}


def examples(*, run_dir: str, out: str) -> dict[str, Any]:
    """Writes the raw inputs of the test split of a run."""
    import numpy as np

    from tfgpu.artifacts.trained_run import TrainedRun

    run = TrainedRun.open(Path(run_dir))
    data = run.load_data(dataset=None, data_dir=None)
    np.savez(out, x=data.test.load_arrays()[0])
    return {}


def measure_latency(*, files: dict[str, str], rounds: int, seconds: float) -> dict[str, Any]:
    """Times single images in turn: in each round each file for a while.

    Returns:
        By runtime "p50" and "p99" of each round in seconds, "calls" in a round at least, and "on",
        the device.
    """
    import numpy as np
    import tensorflow as tf

    from tfgpu.artifacts.trained_run import load_safely
    from tfgpu.export.runtimes import LOADERS

    gpu = bool(tf.config.list_logical_devices("GPU"))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    calls: dict[str, Callable[[], Any]] = {}
    shape: tuple[int, ...] | None = None
    if "keras" in files:
        model = load_safely(Path(files["keras"]))
        shape = model.input_shape[1:]
        image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
        calls["predict"] = lambda: model.predict(image, verbose=0)
    for kind, path in files.items():
        predict = LOADERS[kind](Path(path), threads or 1)
        if shape is None:
            from ai_edge_litert.interpreter import Interpreter

            details = Interpreter(path).get_input_details()[0]
            shape = tuple(int(each) for each in details["shape"][1:])
        image_of = {"pixels": np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)}
        calls[kind] = functools.partial(predict, image_of)
    found: dict[str, Any] = {}
    for name, call in calls.items():
        for _ in range(5):
            call()
        on = "GPU:0" if gpu and name in ("predict", "keras", "saved_model") else "CPU:0"
        found[name] = {"p50": [], "p99": [], "calls": [], "on": on}
    for _ in range(rounds):
        for name, call in calls.items():
            times: list[float] = []
            end = time.perf_counter() + seconds
            # A hundred, so that the 99th percentile is not the largest of a few.
            while len(times) < 100 and (len(times) < 20 or time.perf_counter() < end):
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            for key, percent in (("p50", 50), ("p99", 99)):
                found[name][key].append(float(np.percentile(times, percent)))
            found[name]["calls"].append(len(times))
    for one in found.values():
        one["calls"] = min(one["calls"])
    return found


WORK = {"export_network": export_network, "examples": examples, "latency": measure_latency}

if __name__ == "__main__":
    startup.prepare_environment()
    startup.import_tensorflow()
    print(json.dumps(WORK[sys.argv[1]](**json.loads(sys.argv[2]))))
