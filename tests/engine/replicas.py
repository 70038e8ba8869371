"""What tests of one device and two replicas share: where a model runs, and what is compared."""

import numpy as np
import pytest
import tensorflow as tf

# Keras says so when the size of the data was not known, and of generators that end.
runs_out = pytest.mark.filterwarnings("ignore:.*ran out of data")


def slow(*values):
    """A case of which others are tried on each run."""
    return pytest.param(*values, marks=pytest.mark.slow)


def one_device():
    return tf.distribute.get_strategy()


def ways(*names):
    """A fixture of how a model runs: the strategy, and whether XLA compiles.

    Args:
        names: "x1", "x1-xla", "x2" or "x2-xla", or `slow` of these.
    """

    @pytest.fixture(params=names)
    def way(request, mirrored2):
        strategy = mirrored2 if request.param.startswith("x2") else one_device()
        return strategy, request.param.endswith("xla")

    return way


def copies(variable):
    """A variable's value on each replica."""
    value = getattr(variable, "value", variable)
    value = value if not callable(value) else variable
    return [v.numpy() for v in getattr(value, "values", [value])]


def assert_same_on_replicas(variables):
    for variable in variables:
        first, *others = copies(variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def assert_same_weights(expected, actual, rtol=1e-4, atol=1e-5):
    for one, other in zip(expected.get_weights(), actual.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=rtol, atol=atol)


def assert_logs(expected, actual, rtol=1e-4, atol=1e-5):
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=atol, err_msg=name)
