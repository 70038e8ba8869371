"""What the tests of the tasks ask a finished run for."""

import json
from types import SimpleNamespace

import keras
import tensorflow as tf
from commands import command

from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.train import __main__ as train


def train_run(dataset, out, *flags):
    """Trains into `out`; returns it."""
    assert command(train.main, f"--dataset={dataset}", f"--run_dir={out}", *flags) == 0
    return out


def read_json(path):
    """What a file holds."""
    return json.loads(path.read_text())


def result_of(run):
    """What result.json holds."""
    return read_json(run / "result.json")


def weights(run):
    """Those of the saved model."""
    return keras.models.load_model(run / "model.keras", compile=False).get_weights()


def loaded(run, *arguments):
    """What `predict` loads for a run: at the chief, and at a worker that gets the items as JSON."""
    opened = TrainedRun.open(run)
    settings = SimpleNamespace(format="jsonl", top_k=3, users=None)
    chief, worker = (opened.task(None).predict(opened.spec, settings) for _ in range(2))
    items = list(chief.find(map(str, arguments)))
    others = [worker.from_json(json.loads(json.dumps(chief.to_json(item)))) for item in items]
    assert list(map(str, others)) == list(map(str, items))
    return [chief.load(item) for item in items], [worker.load(item) for item in others]


def assert_same(one, other):
    """Refuses nested arrays that differ in a value, a shape or a type."""
    tf.nest.assert_same_structure(one, other)
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
