"""What a replica's step is of: its rows, and what is known of tensors that it makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import tensorflow as tf
from keras import tree

from tfgpu.engine.dataflow import Data
from tfgpu.engine.shards import Rows
from tfgpu.engine.temporary import ThreadState


class Current(ThreadState):
    """What this thread computes losses and metrics, and in a step of one's own updates, for.

    Attributes:
        rows: Of the shard; None outside of a step.
        exchange: Inside `sharded`, and in a step of one's own: sums a float64 scalar over the
            replicas.
        totals: Inside `sharded`: sums of weights over the replicas, by the tensor's identity.
        data: In a step: what the replica has of its batch and of what layers make of it, by
            identity.
        within_layers: How many layers are called around what is computed now.
        own_context: The strategy's replica context, in a step that a class defines itself.
        alone: Whether in such a step on one device.
        by_rows: In such a step: numbers that are known to count by rows, by identity.
        whole: In such a step: gradients of the global batch, by identity.
        parts: In such a step: gradients that add up to those of the global batch, by identity.
        static: Whether the tensors of the batch say how many rows they have.
        unrecorded: Whether the step has stopped the recording of a tape.
        differentiating: Whether one of them computes gradients.
        drawn: In a step: seeds that are a replica's own, by identity.
        graph: In a step: the one that it is traced in.
        varying: In a step: whether replicas exchange what has as many entries as there are rows.
        averaging: Whether a layer is called whose statistics are averaged, whatever they are.
        assigned_in: The same of variables that are assigned.
        undeclared: The identities of variables whose `aggregation` nobody has chosen, such as an
            optimizer's.
        own_code: Whether a step or a loss of the user's is at work, which is code for one device.
        exchanging: Whether replicas exchange something of the engine's, and not of the user's code.
        updated_in: The names of the graphs in which an optimizer is at work, and its name.
        noting: Whether inside `step_notes`.
        counted_by_rows: Whether a metric is given a number of the batch by the share of the rows.
        counted: Inside `sharded`: the rows that the metrics of outputs' losses count.
        declared: Whether the losses of `compile` are computed.
        within: How many losses are computed around what is computed now.
        updating: Whether an optimizer is at work in such a step.
        building: Whether a step is traced for the variables that it makes, and never run.
    """

    rows: Rows | None = None
    exchange: Callable[[tf.Tensor], tf.Tensor | None] | None = None
    totals: dict[int, tf.Tensor] | None = None
    data: Mapping[int, Data] = MappingProxyType({})
    within_layers = 0
    own_context: Any = None
    alone = False
    by_rows: Mapping[int, tf.Tensor] = MappingProxyType({})
    whole: Mapping[int, tf.Tensor] = MappingProxyType({})
    parts: Mapping[int, tf.Tensor] = MappingProxyType({})
    static = False
    unrecorded = False
    differentiating = False
    updated_in: dict[str, str] = {}  # noqa: RUF012
    drawn: Mapping[int, tf.Tensor] = MappingProxyType({})
    graph: Any = None
    varying = False
    averaging = False
    assigned_in: dict[str, str] = {}  # noqa: RUF012
    undeclared: frozenset[int] = frozenset()
    own_code = False
    exchanging = False
    noting = False
    counted_by_rows = False
    counted: Any = None
    declared = False
    within = 0
    updating = False
    building = False

    def note(self, kind: str, tensors: Iterable[tf.Tensor]) -> None:
        """Notes tensors of a kind, such as `whole`, by identity."""
        known = {id(tensor): tensor for tensor in tensors}
        setattr(self, kind, {**getattr(self, kind), **known})

    @property
    def shared(self) -> Rows | None:
        """`rows` where several replicas share the batch, else None."""
        return self.rows if self.rows is not None and self.rows.replicas > 1 else None


current = Current()


def step_notes(static: bool = False) -> contextlib.AbstractContextManager[None]:
    """Around a replica's step, and what is done with what it returns: nothing is noted yet.

    Args:
        static: Whether the tensors of the batch say how many rows they have.
    """
    notes: dict[str, Any] = {"by_rows": {}, "data": {}, "drawn": {}, "whole": {}, "parts": {}}
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    notes |= {"varying": False, "graph": graph}
    return current.having(**notes, static=static, unrecorded=False, noting=True)


@contextlib.contextmanager
def counting(
    rows: Rows,
    *,
    own_context: Any = None,
    exchange: Callable[[tf.Tensor], tf.Tensor | None] | None = None,
) -> Iterator[None]:
    """Inside, a replica's step on `rows` is computed.

    Args:
        rows: Of its shard.
        own_context: The strategy's own replica context, where the step is one that the model's
            class defines. Keras' losses give the mean over this replica's rows there; for the
            gradients see `own_gradients`.
        exchange: Sums a tensor over the replicas, for the losses of such a step.
    """
    notes = contextlib.nullcontext() if current.noting else step_notes()
    with notes, current.having(rows=rows, own_context=own_context, exchange=exchange):
        yield


def note_data(batch: Any) -> Any:
    """Notes the tensors of a replica's batch, in any structure; returns it."""
    known = {}
    for leaf in tree.flatten(batch):
        if isinstance(leaf, tf.Tensor):
            known[id(leaf)] = Data(leaf, has_rows=leaf.shape.rank != 0)
        elif isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
            flat = leaf.flat_values if isinstance(leaf, tf.RaggedTensor) else leaf.values
            for part in tf.nest.flatten(leaf, expand_composites=True):
                known[id(part)] = Data(part, part is flat, in_order=False, complete=False)
    current.data = {**current.data, **known}
    return batch


def counts_by_rows(loss: Any) -> tf.Tensor:
    """`loss` itself, of which is noted that the average by rows of the replicas' is that of all."""
    loss = tf.convert_to_tensor(loss)
    if current.shared is not None and loss.shape.rank == 0:
        current.note("by_rows", [loss])
    return loss
