"""exp, sin and cos from sums and products."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data import elementary

VALUES = np.linspace(-elementary.LARGEST, elementary.LARGEST, 1001).astype(np.float32)


@pytest.mark.parametrize("name", ["exp", "sin", "cos"])
def test_they_are_as_exact_as_float32_is(name):
    found = getattr(elementary, name)(tf.constant(VALUES)).numpy()
    expected = getattr(np, name)(VALUES.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["exp", "sin", "cos"])
def test_a_value_has_the_same_bits_in_any_place(name):
    function = getattr(elementary, name)
    whole = function(tf.constant(VALUES)).numpy()
    for count in (1, 3, 7, 13):
        parts = [function(tf.constant(VALUES[i : i + count])) for i in range(0, 1001, count)]
        np.testing.assert_array_equal(tf.concat(parts, 0), whole)
