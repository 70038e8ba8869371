"""Recurrent layers that are stateful go on from batch to batch, and two replicas refuse them."""

import keras
import numpy as np
import pytest
from forward_models import SERIES, TARGETS, TOLERANCE, build, evaluate, fit
from replicas import one_device, slow

import tfgpu

L = keras.layers
STATEFUL = {
    "lstm": lambda: L.LSTM(4, stateful=True, name="keeps"),
    "gru": lambda: L.GRU(4, stateful=True, name="keeps"),
    "simple": lambda: L.SimpleRNN(4, stateful=True, name="keeps"),
    "bidirectional": lambda: L.Bidirectional(L.LSTM(2, stateful=True, name="keeps"), name="keeps"),
    "stacked": lambda: L.RNN([L.LSTMCell(2), L.GRUCell(2)], stateful=True, name="keeps"),
}


def recurrent(kind):
    def network():
        inputs = keras.Input(batch_shape=(8, 5, 3))
        return inputs, L.Dense(1)(STATEFUL[kind]()(inputs))

    return network


def conv_lstm():
    inputs = keras.Input(batch_shape=(8, 5, 3))
    x = L.Reshape((5, 3, 1))(inputs)
    x = L.ConvLSTM1D(2, 2, stateful=True, name="keeps")(x)
    return inputs, L.Dense(1)(L.Flatten()(x))


@pytest.mark.parametrize(
    ("kind", "jit_compile"),
    [
        *((kind, False) for kind in ["lstm", "bidirectional", "conv_lstm"]),
        *(slow(kind, False) for kind in ["gru", "simple", "stacked"]),
        ("lstm", True),
        *(slow(kind, True) for kind in ["gru", "simple", "bidirectional", "stacked", "conv_lstm"]),
    ],
)
def test_a_stateful_layer_goes_on_from_batch_to_batch(kind, jit_compile):
    network = conv_lstm if kind == "conv_lstm" else recurrent(kind)
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), network, jit_compile and cls is tfgpu.Model, rate=0.1)
        losses = fit(model, SERIES, TARGETS, batch_size=8)["loss"]
        said.append(losses + [evaluate(model, SERIES, TARGETS, 8)["loss"]])
        said[-1].extend(model.predict(SERIES, batch_size=8, verbose=0).ravel())
    np.testing.assert_allclose(*said, **TOLERANCE)


def test_reset_states_of_a_stateful_layer_is_heard():
    model = build(tfgpu.Model, one_device(), recurrent("lstm"))
    first, going_on = (model.predict(SERIES[:8], batch_size=8, verbose=0) for _ in range(2))
    assert np.abs(first - going_on).max() > 1e-4
    model.layers[1].reset_state()
    np.testing.assert_allclose(model.predict(SERIES[:8], batch_size=8, verbose=0), first, rtol=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("kind", ["lstm", "bidirectional", "conv_lstm"])
def test_two_replicas_refuse_a_stateful_layer_by_name(mirrored2, kind, method):
    network = conv_lstm if kind == "conv_lstm" else recurrent(kind)
    data = (SERIES,) if method == "predict" else (SERIES, TARGETS)
    with pytest.raises(ValueError, match="keeps"):
        model = build(tfgpu.Model, mirrored2, network)
        getattr(model, method)(*data, batch_size=8, verbose=0)
