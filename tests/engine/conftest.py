import contextlib
import os
import re
import zlib
from importlib import metadata
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# XLA for CPUs compiles a step in three quarters of the time without these. An unknown flag ends the
# process, so this is for the version in which it is known to be there.
with contextlib.suppress(metadata.PackageNotFoundError):
    if metadata.version("tensorflow").startswith("2.21."):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

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


# Of any test one case runs each time, of every second test the last one, and the rest with the slow
# ones: they took half of the time of the default tests. But for these modules, whose cases take no
# time or stand for a name of Keras each.
EVERY_CASE = {
    *("all_reduce", "batch_sizes", "compiled_loop", "keras_internals", "loss_scale"),
    *("own_step_gradients", "rematerialization", "row_axis", "shards", "xla_metrics"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    cases = {}
    for item in items:
        case, module = getattr(item, "callspec", None), item.path.stem.removeprefix("test_")
        if case is None or HERE not in item.path.parents:
            continue
        if module in OF_REPLICAS:
            losses_under_xla = module == "losses" and "x2-xla" in case.id
            if losses_under_xla or re.search(r"(^|-)x1(-|$)", case.id):
                item.add_marker(pytest.mark.slow)
        if module not in EVERY_CASE and item.get_closest_marker("slow") is None:
            cases.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for (_, _, name), some in cases.items():
        kept = some[-(zlib.crc32(name.encode()) % 2)]
        for item in some:
            if item is not kept:
                item.add_marker(pytest.mark.slow)
