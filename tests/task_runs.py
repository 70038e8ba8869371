"""What the tests of the tasks ask a finished run for."""

import json

import keras
from commands import command

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
