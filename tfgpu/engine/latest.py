"""What the last step of a loop over steps gave, brought out of the loop."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Latest:
    """What the last round of a loop gave, whose structure is known once the round is traced.

    A step that was traced a second time, behind the loop, would draw the numbers of TensorFlow's
    random operations with a seed again.
    """

    def __init__(self) -> None:
        self._structure: Any = None
        self._leaves: list[Any] = []

    def nothing(self) -> tf.Tensor:
        """What the loop begins with."""
        return tf.raw_ops.OptionalNone()

    def keep(self, result: Any) -> tf.Tensor:
        """The result of a round, as a tensor: of a replica, or of several."""
        self._structure = result
        self._leaves = tf.nest.flatten(result, expand_composites=True)
        return tf.raw_ops.OptionalFromValue(components=self._tensors())

    def of(self, kept: tf.Tensor) -> Any:
        """The result again, outside of the loop."""
        tensors = self._tensors()
        values = iter(
            tf.raw_ops.OptionalGetValue(
                optional=kept,
                output_types=[tensor.dtype for tensor in tensors],
                output_shapes=[tensor.shape for tensor in tensors],
            )
        )
        leaves = [next(values) if tf.is_tensor(leaf) else leaf for leaf in self._leaves]
        return tf.nest.pack_sequence_as(self._structure, leaves, expand_composites=True)

    def _tensors(self) -> list[Any]:
        # An optional holds one at least.
        return [leaf for leaf in self._leaves if tf.is_tensor(leaf)] or [tf.constant(0)]
