"""Averages over views of an image."""

import keras
import numpy as np
import pytest

import tfgpu
from tfgpu.evaluate.settings import EvaluateSettings
from tfgpu.models.views import VIEWS, averaged

X = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.float32)


def classifier():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 5, 3))
    return tfgpu.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))


def views_of(name):
    """Weights and images."""
    if name == "one":
        return [(1, X)]
    if name == "mirror":
        return [(1 / 2, X), (1 / 2, X[:, :, ::-1])]
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [padded[:, :-2, :-2], padded[:, 2:, 2:]]
    both = [(1 / 8, each[:, :, ::step]) for each in shifted for step in (1, -1)]
    return [(1 / 4, X), (1 / 4, X[:, :, ::-1]), *both]


@pytest.mark.parametrize("name", VIEWS)
def test_outputs_are_the_weighted_mean_over_the_views(name):
    model = classifier()
    found = averaged(model, name)
    expected = sum(weight * np.asarray(model(images)) for weight, images in views_of(name))
    np.testing.assert_allclose(found.predict(X, verbose=0), expected, rtol=1e-4, atol=1e-3)
    assert isinstance(found, tfgpu.Model) and found.output_shape == (None, 4)
    assert found.count_params() == model.count_params()


@pytest.mark.parametrize(
    ("shape", "layer", "said"),
    [
        ((6,), keras.layers.Dense, "does not take one image"),
        ((6, 5, 3), lambda units: keras.layers.Conv2D(units, 1), "a mirror image is not"),
    ],
)
def test_what_has_no_views_is_refused(shape, layer, said):
    inputs = keras.Input(shape)
    with pytest.raises(ValueError, match=said):
        averaged(tfgpu.Model(inputs, layer(2)(inputs)), "mirror")


def test_the_flag_names_them():
    for name in VIEWS:
        assert EvaluateSettings(run_dir="a", views=name).views == name
