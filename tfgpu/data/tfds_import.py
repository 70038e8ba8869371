"""tensorflow-datasets, where it can be used beside the protobuf that TensorFlow asks for."""

from importlib.metadata import version

import tensorflow_datasets as tfds

from tfgpu.errors import DataError

__all__ = ["tfds"]

# It logs what its own imports raise, and goes on without them.
if not hasattr(tfds, "core"):
    raise DataError(
        f"tensorflow-datasets {version('tensorflow-datasets')} cannot be used: tensorflow-metadata "
        f"{version('tensorflow-metadata')} does not fit protobuf {version('protobuf')}, which "
        "TensorFlow 2.19 is bound to: pip install 'tensorflow-metadata<1.18'"
    )
