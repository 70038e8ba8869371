import re

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


# One device runs Keras' own code, and the random models of `-m differential` try it too: here the
# cases of replicas run each time, and those of one device with the slow ones.
OF_REPLICAS = {
    *("aggregation", "control_flow", "elements", "frozen_layers", "generators", "loss_masks"),
    *("loss_weights", "losses", "optimizers", "own_step", "own_step_metrics", "prediction"),
    *("own_step_optimizers", "prediction_data", "xla", "xla_metrics", "memory"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        case = getattr(item, "callspec", None)
        if case is not None and item.path.stem.removeprefix("test_") in OF_REPLICAS:
            losses_under_xla = item.path.stem == "test_losses" and "x2-xla" in case.id
            if losses_under_xla or re.search(r"(^|-)x1(-|$)", case.id):
                item.add_marker(pytest.mark.slow)
