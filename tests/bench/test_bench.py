"""`tfgpu bench` as a user calls it: one real short run, and the requests it refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfgpu
from tfgpu.bench import report, run
from tfgpu.bench.settings import BenchSettings
from tfgpu.cli.console import Console

ROOT = Path(tfgpu.__file__).parents[1]

# One of the configurations takes 64 TiB, which no machine has.
BUILDER = """
import keras
import tensorflow as tf
import tfgpu


class Full(keras.layers.Layer):
    def call(self, x):
        if keras.config.dtype_policy().name == "mixed_bfloat16":
            large = tf.random.stateless_uniform([1 << 44], [0, 0])
            return x + tf.cast(tf.reduce_max(large), x.dtype)
        return x


def build(*, image_shape, num_classes):
    inputs = keras.Input(image_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Dense(16)(keras.layers.Flatten()(x))
    return tfgpu.Model(inputs, keras.layers.Dense(num_classes, dtype="float32")(Full()(x)))
"""


def bench(*flags, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tfgpu.bench", *flags],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "SECONDS", 0.02)
    # Room for all cells at a time, whatever else the machine does.
    monkeypatch.setattr(run.hardware, "host_free_memory", lambda: 64 * 2**30)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tmp_path.joinpath("full.py").write_text(BUILDER)
    out = io.StringIO()
    config = BenchSettings(
        model="full:build",
        dataset="synthetic:8x8x3:4",
        batch_size=32,
        factors="precision",
        rounds=3,
        run_dir="out",
        devices="CPU:0",
    )
    directory = run.run(config, console=Console(progress="plain", file=out))

    told = json.loads((directory / "bench.json").read_text())
    base, half, full = told["cells"]
    assert [cell["flags"] for cell in (base, half, full)] == [
        "",
        "--precision=mixed_float16",
        "--precision=mixed_bfloat16",
    ]
    # The one without memory says so, and the rest went on.
    assert full["error"] == "out of memory" and "rate" not in full
    for cell in (base, half):
        assert cell["error"] is None
        assert len(cell["runs"]) == 3 and min(cell["runs"]) > 0
        assert cell["gain"]["low"] <= cell["gain"]["median"] <= cell["gain"]["high"]
        assert cell["compile_seconds"] > 0
        assert cell["parameters"] == 192 * 16 + 16 + 16 * 4 + 4
    assert base["gain"]["median"] == 1
    # 2 x (192 x 16 + 16 x 4) operations an image forward, three times that in training.
    assert told["timings"]["flops"] == 3 * 32 * 2 * (192 * 16 + 16 * 4)
    assert told["verdict"]["bound"] in ("input", "launch", "memory", "compute")
    assert all(value > 0 for value in told["ceilings"]["matrix_product"].values())
    assert told["ceilings"]["host_to_device_bandwidth"] is None
    assert told["environment"]["devices"][0]["name"] == "CPU:0"
    assert told["command"].startswith("tfgpu bench --factors=precision --rounds=3 --devices=CPU:0")

    said = out.getvalue()
    assert "mixed_bfloat16: out of memory" in said
    assert " left" in said and f"{told['verdict']['bound']}-bound" in said


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--factors=precison"], 2, "did you mean 'precision'"),
        pytest.param(
            *(["--factors=device", "--devices=CPU:0"], 2, "nothing to compare"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(["--dataset=synthetic:8x8:4"], 2, "synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(["--jit_compile=auto"], 2, "must be true or false here"), marks=pytest.mark.slow
        ),
        (["--devices=CPU:0", "--run_dir=/proc/no/place"], 2, "--run_dir=/proc/no/place: cannot"),
    ],
)
def test_a_request_that_cannot_be_done(tmp_path, flags, code, said):
    done = bench(*flags, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("tfgpu: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def results():
    """What bench.json holds of a run on a machine with four GPUs."""
    spread = {"median": 1.5, "low": 1.4, "high": 1.6}

    def cell(factor, name, replicas=1):
        return {
            "factor": factor,
            "name": name,
            "error": None,
            "replicas": replicas,
            "rate": {"median": 900.0, "low": 850.0, "high": 950.0},
            "gain": spread,
        }

    layer = {"name": "conv", "flops": 1e9, "traffic": 1e7, "seconds": 1e-2}
    return {
        "model": "lenet",
        "dataset": "digits",
        "rounds": 5,
        "environment": {
            "time": "2026-01-01T00:00:00+00:00",
            "devices": [{"description": "a GPU"}],
            "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        },
        "timings": {
            "peak_flops": 1e12,
            "bandwidth": 1e11,
            "flops": 3e9,
            "traffic": 4e7,
            "both": 1e-2,
        },
        "layers": [layer, {**layer, "name": "pool", "flops": 0.0, "seconds": None}],
        "cells": [
            cell("baseline", "baseline"),
            cell("xla", "XLA on"),
            {"factor": "precision", "name": "mixed_float16", "error": "out of memory"},
            cell("replicas", "2 replicas, weak scaling", 2),
            cell("replicas", "2 replicas, strong scaling", 2),
        ],
    }


def test_the_charts(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = report.draw(results(), tmp_path)
    assert {path.name for path in drawn} == {"throughput.png", "scaling.png", "roofline.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_chart_without_anything_on_it_is_not_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    told = results()
    told["cells"] = told["cells"][:2]
    told["layers"] = []
    assert [path.name for path in report.draw(told, tmp_path)] == ["throughput.png"]


def test_without_matplotlib_there_are_no_charts(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "tfgpu.bench.plots", raising=False)
    monkeypatch.delattr("tfgpu.bench.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.draw(results(), tmp_path) == []
    assert "tfgpu[plots]" in report.NO_PLOTS
