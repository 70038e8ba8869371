"""Operations of TensorFlow that tf2onnx does not know; importing this registers them."""

from __future__ import annotations

from typing import Any

import numpy as np
from tf2onnx import utils
from tf2onnx.handler import tf_op


@tf_op("Erfc")
class Erfc:
    """erfc(x) = 1 - erf(x): TensorFlow computes the exact GELU by the one, ONNX has the other."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        """From the operations of ONNX 9 on."""
        shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
        one = np.array(1, utils.map_onnx_to_numpy_type(dtype))
        constant = ctx.make_const(utils.make_name("one"), one)
        erf = ctx.make_node("Erf", node.input, shapes=[shape], dtypes=[dtype])
        ctx.remove_node(node.name)
        ctx.make_node(
            "Sub",
            [constant.output[0], erf.output[0]],
            name=node.name,
            outputs=node.output,
            shapes=[shape],
            dtypes=[dtype],
        )
