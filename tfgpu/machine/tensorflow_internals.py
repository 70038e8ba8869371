"""The private names of TensorFlow and Keras that say what a machine has and a model computes.

Those of training are in `tfgpu.engine.keras_internals`, which this package does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfgpu.errors import VersionError

_VERSIONS = f"Keras {keras.__version__} with TensorFlow {tf.__version__}"

try:
    from keras.src.ops.function import Function
    from tensorflow.python.client.device_lib import list_local_devices
    from tensorflow.python.distribute.collective_all_reduce_strategy import (
        coordination_config_pb2,
    )
    from tensorflow.python.eager.context import context
    from tensorflow.python.util._pywrap_util_port import IsMklEnabled
except ImportError as error:
    raise VersionError(f"tfgpu does not fit {_VERSIONS}: {error}") from error

for _kind, _name in ((keras.Sequential, "_functional"), (Function, "_nodes_by_depth")):
    if _name not in _kind.__init__.__code__.co_names:
        raise VersionError(f"tfgpu needs {_kind.__name__}.{_name}, which {_VERSIONS} does not have")


for _name in ("abort_collective_ops", "configure_coordination_service"):
    if not hasattr(context(), _name):
        raise VersionError(f"tfgpu needs Context.{_name}, which {_VERSIONS} does not have")


def set_registration_timeout(jobs: Mapping[str, int], *, seconds: int) -> None:
    """Says how long the processes of a cluster wait for each other; before the strategy is made.

    Args:
        jobs: Processes by the name of their job: "chief" and "worker".
        seconds: Until registering fails.
    """
    leader = "chief" if "chief" in jobs else "worker"
    context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        cluster_register_timeout_in_ms=seconds * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=count)
            for job, count in jobs.items()
        ],
    )


def abort_collectives(message: str) -> None:
    """Ends the collectives of this process with an `AbortedError`, also those to come."""
    context().abort_collective_ops(tf.errors.ABORTED, message)


def memory_limit(device: str) -> int | None:
    """Bytes that TensorFlow may take of a device such as "GPU:0"; None when it knows no such."""
    limits = {found.name: int(found.memory_limit) for found in list_local_devices()}
    return limits.get(f"/device:{device}")


def has_onednn() -> bool:
    """Whether TensorFlow was built with oneDNN and has it switched on."""
    return bool(IsMklEnabled())


def nodes(model: keras.Model) -> list[Any] | None:
    """The calls of a model's layers, in order; None for a model without a graph of them."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if not isinstance(graph, Function):
        return None
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
