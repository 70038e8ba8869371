"""Keras' masks reach losses and metrics on two replicas as on one device."""

import keras
import numpy as np
import pytest
from loss_runs import REDUCTIONS, SLOW, Penalty, assert_as_stock, cross_entropy, mse, weighted_steps
from replicas import one_device, slow

L = keras.layers


def tagger(penalised=False):
    def network():
        inputs = keras.Input((5,), dtype="int32")
        x = L.Embedding(9, 3, mask_zero=True)(inputs)
        x = L.LSTM(4, return_sequences=True)(x)
        return inputs, L.Dense(3)(Masked()(x) if penalised else x)

    return network


class Masked(Penalty):
    """Adds a loss, and hands the mask on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.supports_masking = True


def sentences(rows, weights=0):
    """Tokens of which the first rows of each batch of 4 are short: replicas differ in length."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 9, (rows, 5)).astype("int32")
    lengths = np.resize([1, 2, 5, 4], rows)
    tokens[np.arange(5)[None] >= lengths[:, None]] = 0
    tags = rng.integers(0, 3, (rows, 5)).astype("int32")
    extra = rng.uniform(0.1, 1, (rows, 5 if weights == 2 else 1)).astype("float32")
    return (tokens, tags, extra) if weights else (tokens, tags)


@pytest.mark.parametrize("rows", [pytest.param(8, marks=SLOW), 9, pytest.param(11, marks=SLOW)])
@pytest.mark.parametrize("reduction", [r if r in ("mean", "sum") else slow(r) for r in REDUCTIONS])
def test_a_mask_that_reaches_the_loss(mirrored2, reduction, rows):
    settings = {
        "loss": cross_entropy(reduction=reduction),
        "rate": 0.02 if reduction in ("sum", None) else 0.5,
    }
    assert_as_stock((mirrored2, False), tagger(), sentences(rows), 4, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_mask_and_sample_weights(mirrored2, reduction, rank):
    settings = {"loss": cross_entropy(reduction=reduction), "rate": 0.5}
    data = sentences(9, rank)
    assert_as_stock((mirrored2, False), tagger(), data, 4, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
@pytest.mark.parametrize("rows", [8, 9])
def test_a_mask_and_an_added_loss(mirrored2, reduction, rows):
    settings = {"loss": cross_entropy(reduction=reduction), "rate": 0.5}
    assert_as_stock((mirrored2, False), tagger(True), sentences(rows), 4, **settings)


def test_metrics_heed_a_mask(mirrored2):
    settings = {
        "loss": cross_entropy(),
        "metrics": lambda: ["accuracy"],
        "weighted_metrics": lambda: ["accuracy"],
        "rate": 0.5,
    }
    assert_as_stock((mirrored2, False), tagger(), sentences(9, 2), 4, **settings)


@pytest.mark.slow
def test_a_mask_on_one_device_under_xla():
    assert_as_stock((one_device(), True), tagger(), sentences(9), 4, loss=cross_entropy())


def test_a_row_that_is_masked_throughout(mirrored2):
    tokens, tags = sentences(8)
    tokens[:2] = 0  # All rows of the first replica.
    settings = {"loss": cross_entropy(), "rate": 0.5}
    assert_as_stock((mirrored2, False), tagger(), (tokens, tags), 4, **settings)


@pytest.mark.slow
def test_a_masking_layer_of_series(mirrored2):
    def network():
        inputs = keras.Input((3, 4))
        x = L.Masking()(inputs)
        return inputs, L.Dense(2)(L.GRU(3, return_sequences=True)(x))

    x, y = weighted_steps(9, 0)
    x[::2, 1:] = 0
    assert_as_stock((mirrored2, False), network, (x, y), 4, loss=mse())


def test_a_mask_under_xla_warns_and_is_exact(mirrored2):
    with pytest.warns(UserWarning, match="without XLA"):
        assert_as_stock((mirrored2, True), tagger(), sentences(9), 4, loss=cross_entropy())
