"""The model of a run, as plain Keras reads it."""

import os

import keras
import numpy as np
import pytest

import tfgpu
from tfgpu.artifacts.model_file import save_for_keras
from tfgpu.models.classification_loss import classification_loss

# TensorFlow's MirroredVariable, when Keras saves weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def build(**compiled):
    inputs = keras.Input((3,))
    model = tfgpu.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile(**compiled)
    return model


def test_plain_keras_reads_what_was_saved(tmp_path):
    model = build(optimizer="sgd", loss="mse")
    save_for_keras(model, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_what_only_tfgpu_knows_is_left_out(tmp_path):
    model = build(optimizer="sgd", loss=classification_loss(num_classes=2, label_smoothing=0.1))
    save_for_keras(model, tmp_path / "model.keras")
    assert not keras.saving.load_model(tmp_path / "model.keras").compiled
    assert model.compiled


def test_the_name_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def record(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save_for_keras(build(optimizer="sgd", loss="mse"), tmp_path / "model.keras")
    assert flushed[-1] == tmp_path.stat().st_ino


def test_a_model_that_cannot_be_saved_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    path.write_text("old")
    model = build(optimizer="sgd", loss="mse")
    monkeypatch.setattr(model, "save", lambda beside: beside.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_for_keras(model, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert model.compiled
