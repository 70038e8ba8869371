"""Models of rows of a table: standardised numbers and numbered categories in.

No model has dropout: each replica would draw masks of its own, and N replicas would not be one.
`--augment=drop` is its part, since it draws numbers for each example.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

import tfgpu

ops, layers = keras.ops, keras.layers

UNITS, EMBEDDING_UNITS = 128, 8


def piecewise(
    *,
    num_numbers: int,
    num_categories: int,
    category_columns: int,
    edges: Sequence[Sequence[float]],
    num_outputs: int,
    scale: float = 1.0,
    offset: float = 0.0,
    width: float = 1.0,
    depth: int = 2,
) -> tfgpu.Model:
    """`mlp`, which gets each number by the pieces of its range too.

    A number becomes one value for each piece between two `edges`: 0 below it, 1 above it, linear
    within. So the first layer is a piecewise linear function of every number, as fine as the data
    are dense, where a plain network of this size is smooth. Source: Gorishniy, Rubachev and
    Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022, with
    quantiles for edges; the number itself stays beside the pieces, for what is outside of them.

    Args:
        num_numbers: Numbers of a row, with those that say what is missing.
        num_categories: Different categories of all columns together, without the unknown one.
        category_columns: Columns of categories.
        edges: Of the first columns of numbers, ascending, two or more for each, in their units.
        num_outputs: Logits, or 1 for a number.
        scale: What the output is multiplied by.
        offset: What is added to it then.
        width: Multiplies the units of a layer, 128.
        depth: Hidden layers.

    Returns:
        A model from {"numbers": float32 (batch, num_numbers), "categories": int32
        (batch, category_columns), 0 for unknown} to float32 (batch, num_outputs); of the two
        inputs those that are not empty.

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    inputs = _inputs(num_numbers, category_columns)
    parts = _parts(inputs, num_categories)
    if edges:
        pieces = max(len(some) for some in edges) - 1
        scales, offsets = np.zeros((2, len(edges), pieces))
        for column, some in enumerate(edges):
            low, high = np.asarray(some[:-1], float), np.asarray(some[1:], float)
            scales[column, : len(low)] = 1 / (high - low)
            offsets[column, : len(low)] = -low / (high - low)
        x = ops.expand_dims(inputs["numbers"][:, : len(edges)], -1)
        x = x * scales.astype(np.float32) + offsets.astype(np.float32)
        # Those of a column with fewer pieces are always 0.
        parts.append(layers.Flatten(name="join_pieces")(ops.clip(x, 0.0, 1.0)))
    return _network(
        inputs, parts, num_outputs, scale, offset, width=width, depth=depth, name="piecewise"
    )


def mlp(
    *,
    num_numbers: int,
    num_categories: int,
    category_columns: int,
    edges: Sequence[Sequence[float]] = (),
    num_outputs: int,
    scale: float = 1.0,
    offset: float = 0.0,
    width: float = 1.0,
    depth: int = 2,
) -> tfgpu.Model:
    """Dense layers with ReLU over numbers and embeddings of categories.

    Args:
        num_numbers: See `piecewise`.
        num_categories: See `piecewise`.
        category_columns: See `piecewise`.
        edges: Of no use here.
        num_outputs: See `piecewise`.
        scale: See `piecewise`.
        offset: See `piecewise`.
        width: Multiplies the units of a layer, 128.
        depth: Hidden layers.

    Returns:
        See `piecewise`.

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    inputs = _inputs(num_numbers, category_columns)
    parts = _parts(inputs, num_categories)
    return _network(inputs, parts, num_outputs, scale, offset, width=width, depth=depth, name="mlp")


def _inputs(num_numbers: int, category_columns: int) -> dict[str, keras.KerasTensor]:
    inputs = {}
    if num_numbers:
        inputs["numbers"] = keras.Input((num_numbers,), name="numbers")
    if category_columns:
        inputs["categories"] = keras.Input((category_columns,), dtype="int32", name="categories")
    return inputs


def _parts(inputs: dict[str, keras.KerasTensor], num_categories: int) -> list[keras.KerasTensor]:
    """What a row is to the first layer: the embeddings of its categories, and its numbers."""
    parts = []
    if "categories" in inputs:
        given = inputs["categories"]
        x = layers.Embedding(num_categories + 1, EMBEDDING_UNITS, name="embedding")(given)
        # The unknown category is no row of the training split, so it would keep what it began with.
        x = x * ops.cast(ops.expand_dims(ops.not_equal(given, 0), -1), x.dtype)
        parts.append(layers.Flatten(name="join_embeddings")(x))
    if "numbers" in inputs:
        parts.append(inputs["numbers"])
    return parts


def _network(
    inputs: dict[str, keras.KerasTensor],
    parts: list[keras.KerasTensor],
    num_outputs: int,
    scale: float,
    offset: float,
    *,
    width: float,
    depth: int,
    name: str,
) -> tfgpu.Model:
    if width <= 0 or depth < 1:
        raise ValueError(f"{name} needs a width above 0 and a depth of at least 1")
    units = max(8, round(UNITS * width / 8) * 8)
    x = layers.Concatenate(name="join")(parts) if len(parts) > 1 else parts[0]
    for i in range(depth):
        x = layers.Dense(units, activation="relu", name=f"dense_{i + 1}")(x)
    x = layers.Dense(num_outputs, dtype="float32", name="outputs")(x)
    if (scale, offset) != (1.0, 0.0):
        x = layers.Rescaling(scale, offset, dtype="float32", name="in_units")(x)
    return tfgpu.Model(inputs, x, name=name)
