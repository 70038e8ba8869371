import pytest

# What they assert is shown as in tests.
pytest.register_assert_rewrite(
    "dense_models",
    "element_models",
    "forward_models",
    "loss_runs",
    "optimizer_runs",
    "own_steps",
    "prediction_models",
    "replicas",
    "xla_models",
)


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, tensorflow, mirrored2):
    """Keras' own of one device, and two replicas."""
    return tensorflow.distribute.get_strategy() if request.param == 1 else mirrored2
