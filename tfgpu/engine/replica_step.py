"""One step of one replica: forward, loss, backward, all-reduce, update, metrics.

    the rows of this replica                                  (`shards`)
        -> forward, loss, backward, on local copies           (compiled by XLA, if asked)
        -> sum of gradients and of assigned state             (between the replicas)
        -> the optimizer, on local copies                     (compiled by XLA, if asked)
        -> metrics, on local copies

A single replica owes nothing to others, and forward, backward and update are compiled as one.
Everything between the exchanges is Keras' own code, or the user's; see `local_copies`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree
from keras.utils import unpack_x_y_sample_weight

from tfgpu.engine import keras_internals as private
from tfgpu.engine import losses, update
from tfgpu.engine.local_copies import NotCompilable, Writes, exchange, for_xla, on_local_copies
from tfgpu.engine.shards import Rows, Shard
from tfgpu.engine.state import Settlement, sum_over_replicas
from tfgpu.engine.xla import Uncompilable, compiled


class Outcome(NamedTuple):
    """What the forward and the backward pass of a replica leave behind.

    Attributes:
        loss: float, the loss of this replica's rows, weighted so that the mean of the replicas'
            by rows is the loss of the global batch.
        y_pred: The model's outputs.
        gradients: Of the trainable variables, times the loss scale, dense; None where there is
            none. Those of the replicas add up. [] in evaluation.
        batch: (x, y, sample_weight) as metrics take them.
    """

    loss: tf.Tensor
    y_pred: Any
    gradients: list[Any]
    batch: tuple[Any, Any, Any]


class ReplicaStep:
    """The steps of a model, in replica context.

    Args:
        model: A compiled model.
    """

    def __init__(self, model: keras.Model):
        self._model: Any = model
        self._without_xla = False

    # ---- the steps ----------------------------------------------------------------------

    def train(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One training step; returns what `compute_metrics` returned."""
        context = tf.distribute.get_replica_context()
        rows = rows_of(shard, context)
        with losses.counting(rows):
            return self._train(context, shard, rows, device_map, resident)

    def _train(
        self,
        context: Any,
        shard: Shard,
        rows: Rows,
        device_map: Any,
        resident: Sequence[tf.Tensor],
    ) -> Any:
        model = self._model
        dynamic = update.has_dynamic_scale(model.optimizer)
        forward = functools.partial(self._compute, context, shard, rows, device_map, resident)
        if rows.replicas == 1 and not dynamic:

            def whole() -> tuple[Outcome, Any]:
                outcome = forward()
                norm = self._update(context, outcome.gradients)
                return outcome._replace(gradients=[]), norm

            outcome, norm = self._run(whole)
        else:
            totals = self._weight_totals(context, shard, rows, device_map)
            outcome, gradients = self._forward_and_sum(context, rows, forward, totals, dynamic)
            norm = self._run(lambda: self._update(context, gradients))
        if norm is not None:
            model.tfgpu_statistics.record(norm)
        with tf.name_scope("metrics"):
            return self._metrics(context, outcome, rows)

    def test(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One evaluation step; returns what `compute_metrics` returned."""
        context = tf.distribute.get_replica_context()
        rows = rows_of(shard, context)
        totals = self._weight_totals(context, shard, rows, device_map)

        def forward(writes: Writes | None) -> Outcome:
            return self._run(
                lambda: self._compute(
                    context, shard, rows, device_map, resident, writes, totals, training=False
                )
            )

        with losses.counting(rows):
            return self._metrics(context, settled(context, rows, forward), rows)

    def predict(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One prediction step; returns the outputs for the rows that are this replica's."""
        model, context = self._model, tf.distribute.get_replica_context()
        rows = rows_of(shard, context)

        def forward(writes: Writes | None) -> Any:
            def compute() -> Any:
                with on_local_copies(context, writes, exchanging=True):
                    data = finished(shard.data, device_map, resident)
                    x, _, _ = unpack_x_y_sample_weight(data)
                    return _call(model, x, training=False)

            return self._run(compute)

        with losses.counting(rows):
            return own_outputs(settled(context, rows, forward), rows)

    def forward_backward(
        self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]
    ) -> Outcome:
        """The forward and the backward pass of a training step, and what they assign."""
        context = tf.distribute.get_replica_context()
        rows = rows_of(shard, context)
        forward = functools.partial(self._compute, context, shard, rows, device_map, resident)
        with losses.counting(rows):
            totals = self._weight_totals(context, shard, rows, device_map)
            outcome, gradients = self._forward_and_sum(
                context, rows, forward, totals, dynamic=False
            )
        return outcome._replace(gradients=gradients)

    # ---- their parts --------------------------------------------------------------------

    def _forward_and_sum(
        self,
        context: Any,
        rows: Rows,
        forward: Callable[..., Outcome],
        totals: dict[int, tf.Tensor],
        dynamic: bool,
    ) -> tuple[Outcome, list[Any]]:
        """The outcome, and the gradients of the global batch."""
        model = self._model
        if rows.replicas == 1:
            before = _floats(model.non_trainable_variables) if dynamic else []
            outcome = self._run(forward)
            finite = update.all_finite(outcome.gradients) if before else None
            for variable, value in before:
                # What a step that overflows has seen is forgotten.
                variable.assign(tf.where(finite, variable, value))
            return outcome, outcome.gradients
        writes = Writes(keep=dynamic or rows.may_be_absent)
        outcome = self._run(lambda: forward(writes, totals))
        settlement = Settlement(context, writes, rows)
        with tf.name_scope("all_reduce"):
            sums = sum_over_replicas(context, [*outcome.gradients, *settlement.contributions])
        gradients = sums[: len(outcome.gradients)]
        finite = update.all_finite(gradients) if dynamic else None
        settlement.finish(sums[len(gradients) :], finite)
        return outcome, gradients

    def _weight_totals(
        self, context: Any, shard: Shard, rows: Rows, device_map: Any
    ) -> dict[int, tf.Tensor]:
        """Sums of weights over the replicas, before a compiled forward pass needs them."""
        if device_map is not None or rows.replicas == 1:
            return {}
        _, _, sample_weight = unpack_x_y_sample_weight(shard.data)
        sums = losses.weight_sums(private.compile_loss(self._model), sample_weight)
        present = tf.cast(rows.present, tf.float32) if sums else None
        totals = sum_over_replicas(context, [value * present for _, value in sums])
        return {name: total for (name, _), total in zip(sums, totals, strict=True)}

    def _compute(
        self,
        context: Any,
        shard: Shard,
        rows: Rows,
        device_map: Any,
        resident: Sequence[tf.Tensor],
        writes: Writes | None = None,
        totals: dict[int, tf.Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Outcome:
        """Forward and, in training, backward pass: what XLA may compile."""
        model = self._model
        tape: Any = tf.GradientTape() if training else contextlib.nullcontext()
        with on_local_copies(context, writes, exchanging=True):
            data = finished(shard.data, device_map, resident)
            x, y, sample_weight = unpack_x_y_sample_weight(data)
            with tf.name_scope("forward"), tape:
                y_pred = _call(model, x, training=training)
                loss = sharded_loss(
                    functools.partial(private.compute_loss, model),
                    context,
                    totals or {},
                    rows.real,
                    x=x,
                    y=y,
                    y_pred=y_pred,
                    sample_weight=sample_weight,
                    training=training,
                )
                if training:
                    target = losses.objective(loss, rows)
                    if model.optimizer is not None:
                        target = model.optimizer.scale_loss(target)
            gradients: list[Any] = []
            if training and model.trainable_variables:
                gradients = tape.gradient(target, model.trainable_variables)
                if (
                    rows.replicas > 1
                    or not _is_sparse(x)
                    or update.has_dynamic_scale(model.optimizer)
                ):
                    gradients = dense(gradients)
        # The default `compute_metrics` ignores `x`; returning it would copy it.
        keep_x = type(model).compute_metrics is not keras.Model.compute_metrics
        return Outcome(loss, y_pred, gradients, (x if keep_x else None, y, sample_weight))

    def _update(self, context: Any, gradients: list[Any]) -> Any:
        """The optimizer's step: what XLA may compile. Returns the gradients' norm, if asked."""
        model, norm = self._model, None
        if not model.trainable_variables:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return None
        with on_local_copies(context):
            if model.tfgpu_statistics is not None:
                with tf.name_scope("statistics"):
                    # Before the update, which may change the scale.
                    scale = update.loss_scale(model.optimizer)
                    scale = None if scale is None else tf.convert_to_tensor(scale, tf.float32)
                    norm = model.tfgpu_statistics.norm(gradients, scale)
            with tf.name_scope("update"):
                update.apply(model.optimizer, gradients, model.trainable_variables)
        return norm

    def _metrics(self, context: Any, outcome: Outcome, rows: Rows) -> Any:
        """Updates the metrics with this replica's rows; returns `compute_metrics`' dict."""
        model = self._model
        x, y, sample_weight = outcome.batch

        def compute(writes: Writes | None) -> Any:
            with on_local_copies(context, writes):
                tracker = private.loss_tracker(model)
                if tracker is not None:
                    tracker.update_state(outcome.loss, sample_weight=rows.real)
                return model.compute_metrics(x, y, outcome.y_pred, sample_weight=sample_weight)

        return settled(context, rows, compute)

    # ---- XLA ----------------------------------------------------------------------------

    def _run(self, function: Callable[[], Any]) -> Any:
        """Runs `function`, compiled where the model asks for it and XLA can."""
        model = self._model
        if not model.jit_compile or model.run_eagerly or self._without_xla:
            return function()
        several = model.distribute_strategy.num_replicas_in_sync > 1
        if several and (names := synchronized_layers(model)):
            self._leave_xla(
                f"{names[0]} is synchronized: replicas meet in the middle of the forward pass, "
                "which XLA cannot compile. Use synchronized=False to keep XLA"
            )
            return function()
        try:
            with for_xla():
                return compiled(function, layers=functools.partial(layer_scopes, model))
        except NotCompilable as error:
            self._leave_xla(f"{error}, which XLA cannot compile")
        except Uncompilable as error:
            if not model.tfgpu_jit_is_automatic:
                raise ValueError(refusal(str(error))) from None
            self._leave_xla(str(error))
        return function()

    def _leave_xla(self, reason: str) -> None:
        self._without_xla = True
        if self._model.tfgpu_said_of_xla != reason:  # Evaluation need not say it again.
            self._model.tfgpu_said_of_xla = reason
            warnings.warn(f"{reason}; the step runs without XLA.", stacklevel=2)


# ---- what steps of one's own need as well ---------------------------------------------------


def rows_of(shard: Shard, context: Any) -> Rows:
    """The row counts of a replica's shard."""
    return Rows(shard.real, shard.total, context.num_replicas_in_sync)


def finished(data: Any, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
    """A batch as the model takes it, of what travelled to the device."""
    if device_map is None:
        return data
    with tf.name_scope("device_map"):
        return device_map(data, resident)


def sharded_loss(
    compute_loss: Callable[..., Any],
    context: Any,
    totals: dict[int, tf.Tensor],
    real: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls `compute_loss` for a shard of `real` rows; inside `on_local_copies`. See `losses`."""
    adding = functools.partial(exchange, context)
    with losses.sharded(real, totals=totals, exchange=adding):
        return compute_loss(*args, **kwargs)


def dense(gradients: Sequence[Any]) -> list[Any]:
    """Gradients of which none is in parts.

    The gradient of a gather is IndexedSlices: XLA cannot return one, and duplicates in it would
    make clipping and the check for finiteness see parts of it.
    """
    return [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def settled(context: Any, rows: Rows, compute: Callable[[Writes | None], Any]) -> Any:
    """Runs `compute` and brings together what it assigned."""
    if rows.replicas == 1:
        return compute(None)
    writes = Writes(keep=rows.may_be_absent)
    result = compute(writes)
    settlement = Settlement(context, writes, rows)
    settlement.finish(sum_over_replicas(context, settlement.contributions))
    return result


def own_outputs(outputs: Any, rows: Rows) -> Any:
    """Outputs as the replicas' are put together: a replica without rows of its own has none.

    A float without rows is weighted, so that the sum of the replicas' is that of all rows.
    """
    if rows.replicas == 1:
        return outputs

    def own(leaf: Any) -> Any:
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            return leaf * tf.cast(rows.share, leaf.dtype) if leaf.dtype.is_floating else leaf
        if not rows.may_be_absent:
            return leaf
        if isinstance(leaf, tf.SparseTensor):
            shape = tf.concat(
                [[leaf.dense_shape[0] * tf.cast(rows.present, tf.int64)], leaf.dense_shape[1:]],
                axis=0,
            )
            return tf.sparse.slice(leaf, tf.zeros_like(shape), shape)
        if isinstance(leaf, tf.RaggedTensor):
            return leaf[: leaf.nrows() * tf.cast(rows.present, leaf.row_splits.dtype)]
        if isinstance(leaf, tf.Tensor):
            return leaf[: tf.shape(leaf)[0] * tf.cast(rows.present, tf.int32)]
        return leaf

    return tree.map_structure(own, outputs)


def results_by_rows(results: Any, rows: Rows) -> Any:
    """Results whose mean over the replicas is that by rows."""
    if rows.replicas == 1:
        return results

    def weighted(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor) or not leaf.dtype.is_floating:
            return leaf
        part = leaf * tf.cast(rows.share * rows.replicas, leaf.dtype)
        return tf.where(rows.present, part, tf.zeros_like(leaf)) if rows.may_be_absent else part

    return tree.map_structure(weighted, results)


def refusal(complaint: str) -> str:
    """What to say where XLA was asked for and cannot compile the model."""
    return (
        f"jit_compile=True: {complaint}. Use jit_compile=False, or 'auto', which runs such a model "
        "without XLA."
    )


def synchronized_layers(model: keras.Model) -> list[str]:
    """Names of layers that exchange statistics in the forward pass."""
    layers = private.flatten_layers(model)
    return [layer.name for layer in layers if getattr(layer, "synchronized", False)]


def layer_scopes(model: keras.Model) -> dict[str, str]:
    """The names of a model's layers, by the scope of the graph that each runs in."""
    layers = private.flatten_layers(model, include_self=False)
    return {layer.name: layer.name for layer in layers}


def _call(model: Any, x: Any, *, training: bool) -> Any:
    return model(x, training=training) if private.takes_training(model) else model(x)


def _is_sparse(x: Any) -> bool:
    """Whether a model's inputs are sparse; then the gradients may be too large to be dense."""
    return any(isinstance(leaf, tf.SparseTensor) for leaf in tree.flatten(x))


def _floats(variables: Sequence[Any]) -> list[tuple[Any, tf.Tensor]]:
    values = [(variable, tf.convert_to_tensor(variable)) for variable in variables]
    return [(variable, value) for variable, value in values if value.dtype.is_floating]
