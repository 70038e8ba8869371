"""Which rows of a global batch are a replica's.

No batch is padded. The rows are cut as evenly as they go, the first replicas take one more, and
a replica for which none is left computes on one that is another's: an empty batch aborts the
process in oneDNN's max-pool gradient and gives NaN statistics under XLA. What it computes counts
nowhere: its share of the loss is 0, and its metrics and statistics are taken back.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf
from keras import tree

from tfgpu.engine.dataflow import is_reduced_over_rows

Count: TypeAlias = Any
"""A number of rows: an int where shapes are static, else an int32 scalar."""


class Shard(NamedTuple):
    """One replica's part of a batch, as a data set hands it out.

    Attributes:
        data: What the data set yields, cut to this replica's rows.
        real: int32 scalar, how many of the rows count: all of them, or 0.
        total: int32 scalar, rows of the global batch.
    """

    data: Any
    real: Count
    total: Count


@dataclasses.dataclass(frozen=True)
class Rows:
    """The row counts of a replica's shard.

    Attributes:
        real: Rows here that count: 0 where this replica computes on another's row.
        total: Rows of the global batch.
        replicas: Of the strategy.
        hidden: Whether the tensors of the batch do not say how many rows they have, so that what
            says how long it is has none: that is decided alike on replicas of 3 and of 2 rows.
    """

    real: Count
    total: Count
    replicas: int
    hidden: bool = False

    @property
    def may_be_absent(self) -> bool:
        """Whether `real` may turn out to be 0."""
        return not isinstance(self.real, int) or self.real == 0

    @property
    def present(self) -> tf.Tensor:
        """bool scalar: whether this replica has rows of its own."""
        return tf.convert_to_tensor(self.real > 0)

    @property
    def present_replicas(self) -> tf.Tensor:
        """int32 scalar: how many replicas have rows of their own."""
        return tf.minimum(tf.cast(self.total, tf.int32), self.replicas)

    @property
    def share(self) -> tf.Tensor:
        """float64 scalar: the part of the global batch that is here. They add up to 1."""
        return tf.cast(self.real, tf.float64) / tf.cast(self.total, tf.float64)

    @property
    def times_share(self) -> tf.Tensor:
        """float64 scalar: the inverse of `share`, and 1 on a replica without rows."""
        return tf.cast(self.total, tf.float64) / tf.cast(tf.maximum(self.real, 1), tf.float64)

    def are_counted_by(self, values: Any) -> bool:
        """Whether the first dimension of a tensor grows with the rows, as far as can be told.

        It is theirs, or that of time steps or pixels of all rows; and not that of classes, say.
        """
        if values.shape.rank is None or values.shape.rank == 0:
            return values.shape.rank is None
        length, real = values.shape[0], tf.get_static_value(self.real)
        if length is None:
            return True
        if self.hidden or real is None or length % max(int(real), 1):
            return False
        return not is_reduced_over_rows(values, max(int(real), 1))


def has_static_rows(shard: Shard | None) -> bool:
    """Whether a shard's tensors say how many rows they have; None is no shard."""
    leaves = [] if shard is None else tree.flatten(shard.data)
    return any(
        isinstance(leaf, tf.Tensor) and leaf.shape.rank and leaf.shape[0] is not None
        for leaf in leaves
    )


def without_static_rows(shard: Shard) -> Shard:
    """A shard whose tensors do not say how many rows they have, where that is a number.

    What a replica computes of a number of Python's, one device would compute of another, and the
    graph could not tell.
    """

    def hidden(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor) or not leaf.shape.rank or leaf.shape[0] is None:
            return leaf
        return tf.compat.v1.placeholder_with_default(leaf, [None, *leaf.shape[1:]])

    return shard._replace(data=tree.map_structure(hidden, shard.data))


def row_count(batch: Any) -> Count | None:
    """The rows of a batch: those of its first component that has rows; None without one."""
    for leaf in tree.flatten(batch):
        if isinstance(leaf, tf.RaggedTensor):
            return _static_or(leaf.shape[0], lambda leaf=leaf: tf.cast(leaf.nrows(), tf.int32))
        if isinstance(leaf, tf.SparseTensor):
            rows = leaf.shape[0] if leaf.shape.rank is not None else None
            return _static_or(rows, lambda leaf=leaf: tf.cast(leaf.dense_shape[0], tf.int32))
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank != 0:
            rows = leaf.shape[0] if leaf.shape.rank is not None else None
            return _static_or(rows, lambda leaf=leaf: tf.shape(leaf)[0])
    return None


def shard_of(batch: Any, *, replica: Count, replicas: int) -> Shard:
    """Cuts a replica's rows out of a global batch.

    Args:
        batch: Tensors of (rows, ...), ragged or sparse ones too; None and scalars go to all.
        replica: Its number.
        replicas: How many there are.

    Raises:
        ValueError: There is nothing in the batch that has rows, or rows are not as many in
            each component.
    """
    first = next((leaf for leaf in tree.flatten(batch) if row_count(leaf) is not None), None)
    rows = row_count(first)
    if rows is None:
        raise ValueError(
            f"{replicas} replicas share the rows of a batch, and this one has no tensor with "
            "rows; make its components tensors of shape (rows, ...)"
        )
    each, more = rows // replicas, rows % replicas
    if isinstance(rows, int) and isinstance(replica, int):
        real = each + (replica < more)
        start: Count = min(rows_before(rows, replica, replicas), max(rows - 1, 0))
        stop: Count = start + max(real, 1)
    else:
        replica = tf.cast(replica, tf.int32)
        real = each + tf.cast(replica < more, tf.int32)
        start = tf.minimum(rows_before(rows, replica, replicas), tf.maximum(rows - 1, 0))
        stop = start + tf.maximum(real, 1)

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            return leaf
        own = row_count(leaf)
        if own is None:
            return leaf
        if isinstance(own, int) and isinstance(rows, int):
            if own != rows:
                raise ValueError(_uneven(replicas, f"have {rows} and {own} rows"))
        elif leaf is not first:
            uneven = _uneven(replicas, "do not have the same number of rows")
            with tf.control_dependencies([tf.debugging.assert_equal(own, rows, uneven)]):
                leaf = tf.nest.map_structure(tf.identity, leaf, expand_composites=True)
        if isinstance(leaf, tf.SparseTensor):
            shape = leaf.dense_shape
            begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(shape[1:])], axis=0)
            size = tf.concat([[tf.cast(stop - start, tf.int64)], shape[1:]], axis=0)
            return tf.sparse.slice(leaf, begin, size)
        return leaf[start:stop]

    return Shard(tree.map_structure(cut, batch), real, rows)


def rows_before(rows: Count, replica: Count, replicas: int) -> Count:
    """How many of a batch's rows are those of the replicas before one: the first take one more."""
    each, more = rows // replicas, rows % replicas
    least = min if isinstance(rows, int) and isinstance(replica, int) else tf.minimum
    return each * replica + least(replica, more)


def _uneven(replicas: int, what: str) -> str:
    return (
        f"{replicas} replicas share the rows of a batch, but its components {what}; give each "
        "component a row for each example"
    )


def _static_or(rows: int | None, dynamic: Any) -> Count:
    return dynamic() if rows is None else int(rows)
