import pytest

# What they assert is shown as in tests.
pytest.register_assert_rewrite("stores", "backed_up")


@pytest.fixture
def one():
    import tensorflow as tf

    return tf.distribute.OneDeviceStrategy("CPU:0")
