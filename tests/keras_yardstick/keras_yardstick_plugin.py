"""Runs Keras' own tests with tfgpu's classes in place of Keras': a pytest plugin.

`test_keras_yardstick.py` starts it. Keras itself goes on using its own classes: only the names
that the test modules import stand for ours.
"""

import importlib.util
import json
import sys
import types

import pytest


def pytest_addoption(parser):
    parser.addoption("--models", choices=["keras", "tfgpu"], default="keras")
    parser.addoption("--outcomes", help="file that gets a line for each test: its id, its outcome")


def pytest_configure(config):
    from keras.src.backend import backend

    assert backend() == "tensorflow"
    for marker in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{marker}: of Keras' own")
    # What Keras' tests import and its wheel, or this machine, does not have.
    conftest = types.ModuleType("conftest")
    conftest.skip_if_backend = lambda name, reason: pytest.mark.skipif(
        name == backend(), reason=reason
    )
    sys.modules["conftest"] = conftest
    if importlib.util.find_spec("jax") is None:
        sys.modules["jax"] = types.ModuleType("jax")
    if path := config.getoption("--outcomes"):
        config.pluginmanager.register(_Outcomes(path))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    if session.config.getoption("--models") == "keras":
        return (yield)

    import keras
    from keras import src
    from keras.src.backend.tensorflow import trainer
    from keras.src.models import sequential

    from tfgpu.engine import model as ours

    class Trainer(ours.ReplicaTrainer, trainer.TensorFlowTrainer):
        """What a test's `class ExampleModel(Trainer, layers.Dense)` derives from."""

    classes = {"Model": ours.Model, "Functional": ours.Functional, "Sequential": ours.Sequential}
    # Some names are looked up while a test runs: the modules that tests hold stay replaced.
    models = _like(src.models, **classes)
    saving = _like(src.saving, load_model=ours.load_model)
    for module in (keras, keras.models):
        for name in vars(module).keys() & classes.keys():
            setattr(module, name, classes[name])
    patch = pytest.MonkeyPatch()
    patch.setattr(src, "models", models)
    patch.setattr(src, "saving", saving)
    patch.setitem(sys.modules, models.__name__, models)
    patch.setattr(sequential, "Sequential", ours.Sequential)
    patch.setattr(trainer, "TensorFlowTrainer", Trainer)
    try:
        return (yield)
    finally:
        patch.undo()


def _like(module, **replaced):
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update({**vars(module), **replaced})
    return copy


class _Outcomes:
    """Writes each outcome at once, for a test may end the process."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([report.nodeid, report.outcome]) + "\n")
