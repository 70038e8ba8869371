"""What a LiteRT file says of itself: operators, their types, and the size of its weights."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

COMPUTING = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"})
"""Operators with weights: those that int8 is for."""


@dataclasses.dataclass(frozen=True)
class LiteRtFile:
    """The content of a `.tflite` file.

    Attributes:
        operators: How many of each, by name and type of the first input: "CONV_2D int8".
        weights_bytes: Size of all constants.
    """

    operators: dict[str, int]
    weights_bytes: int

    @property
    def float_operators(self) -> list[str]:
        """Those of `COMPUTING` that do not compute in int8."""
        return [
            name
            for name in self.operators
            if name.split()[0] in COMPUTING and not name.endswith(" int8")
        ]


def inspect(path: Path) -> LiteRtFile:
    """Reads a LiteRT file without running it.

    Args:
        path: The file.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    operator_names = _names(schema.BuiltinOperator)
    type_names = {number: name.lower() for number, name in _names(schema.TensorType).items()}
    operators: collections.Counter[str] = collections.Counter()
    weights = 0
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            weights += model.Buffers(graph.Tensors(j).Buffer()).DataLength()
        for j in range(graph.OperatorsLength()):
            operator = graph.Operators(j)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Numbers beyond 127 came later, in a field of their own.
            name = operator_names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            # The first input of a transposed convolution is the shape of its output.
            index = 1 if name == "TRANSPOSE_CONV" else 0
            first = operator.Inputs(index) if operator.InputsLength() > index else -1
            kind = type_names[graph.Tensors(first).Type()] if first >= 0 else "none"
            operators[f"{name} {kind}"] += 1
    return LiteRtFile(dict(sorted(operators.items())), weights)


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
