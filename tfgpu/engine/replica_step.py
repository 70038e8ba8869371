"""One step of one replica: forward, loss, backward, all-reduce, update, metrics.

    the rows of this replica                                  (`shards`)
        -> forward, loss, backward, on local copies           (compiled by XLA, if asked)
        -> sum of gradients and of assigned state             (between the replicas)
        -> the optimizer, on local copies                     (compiled by XLA, if asked)
        -> metrics, on local copies

A single replica owes nothing to others, and forward, backward and update are compiled as one, and
metrics with them that are Keras' own; a metric of somebody else's may be one that XLA cannot.
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
from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.assigned_values import writes_of
from tfgpu.engine.assignments import Writes
from tfgpu.engine.current import counting, current, note_data
from tfgpu.engine.layer_calls import note_predictions
from tfgpu.engine.local_copies import NotCompilable, exchange, for_xla, on_local_copies
from tfgpu.engine.overrides import has_keras_metrics, is_own
from tfgpu.engine.shards import Rows, Shard
from tfgpu.engine.state import Settlement
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


class NeedsStep(Exception):
    """The metrics have to be compiled with the step; it is to be traced once more."""


class ReplicaStep:
    """The steps of a model, in replica context.

    Args:
        model: A compiled model.

    Attributes:
        without_xla: Whether the step was found to be one that XLA cannot compile.
        inlined: Whether what is traced is part of something that is compiled as a whole.
        metrics_with_step: Whether XLA is to compile the metrics of one replica with the step; None
            while the metrics decide.
    """

    def __init__(self, model: keras.Model):
        self._model: Any = model
        self.without_xla = False
        self.inlined = False
        self.metrics_with_step: bool | None = None

    @property
    def uses_xla(self) -> bool:
        """Whether the model asks for XLA, and the step is none that was found not to compile."""
        model = self._model
        return bool(model.jit_compile and not model.run_eagerly and not self.without_xla)

    # ---- the steps ----------------------------------------------------------------------

    def train_step(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One training step; returns what `compute_metrics` returned."""
        model = self._model
        context, rows, read = begun(shard, device_map, resident)
        dynamic = update.has_dynamic_scale(model.optimizer)

        def whole() -> tuple[Outcome, Any]:
            outcome = self._compute_and_forget(context, rows, read, dynamic=dynamic)
            norm = self._update(context, outcome.gradients)
            return outcome._replace(gradients=[]), norm

        with counting(rows):
            if rows.replicas == 1:
                norm, results = self._run_with_metrics(context, rows, whole)
            else:
                outcome = self._forward_and_sum(shard, device_map, resident, dynamic=dynamic)
                norm = self._run(lambda: self._update(context, outcome.gradients))
                results = self._metrics(context, outcome, rows)
            if norm is not None:
                model.tfgpu_statistics.record(norm)
            return results

    def test_step(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One evaluation step; returns what `compute_metrics` returned."""
        context, rows, read = begun(shard, device_map, resident)
        compute = functools.partial(self._compute, context, rows, read, training=False)
        with counting(rows):
            if rows.replicas == 1:
                return self._run_with_metrics(context, rows, lambda: (compute(), None))[1]
            totals = self._weight_totals(context, shard, rows, device_map)
            outcome = settled(
                context, rows, lambda writes: self._run(lambda: compute(writes, totals))
            )
            return self._metrics(context, outcome, rows)

    def predict_step(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """One prediction step; returns the outputs for the rows that are this replica's."""
        context, rows, read = begun(shard, device_map, resident)

        def forward(writes: Writes | None) -> Any:
            def compute() -> Any:
                with on_local_copies(context, writes, exchanging=True):
                    x, _, _ = unpack_x_y_sample_weight(read())
                    return _call(self._model, x, training=False)

            return self._run(compute)

        with counting(rows):
            return own_outputs(settled(context, rows, forward), rows)

    def forward_backward(
        self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]
    ) -> Outcome:
        """The forward and the backward pass of a training step, and what they assign."""
        _, rows, _ = begun(shard, device_map, resident)
        with counting(rows):
            return self._forward_and_sum(shard, device_map, resident, dynamic=False)

    # ---- their parts --------------------------------------------------------------------

    def _forward_and_sum(
        self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor], *, dynamic: bool
    ) -> Outcome:
        """The outcome of a training step, with the gradients of the global batch."""
        model = self._model
        context, rows, read = begun(shard, device_map, resident)
        if rows.replicas == 1:
            return self._run(lambda: self._compute(context, rows, read))
        totals = self._weight_totals(context, shard, rows, device_map)
        writes = writes_of(context, rows, keep=dynamic or rows.may_be_absent)
        outcome = self._run(lambda: self._compute(context, rows, read, writes, totals))
        settlement = Settlement(context, writes, rows)
        with tf.name_scope("all_reduce"):
            parts = to_exchange(context, outcome.gradients, model.trainable_weights)
            summed = [*parts, *settlement.contributions]
            sums = sum_over_replicas(context, summed, statistics=model.tfgpu_statistics)
        gradients = from_exchange(sums[: len(parts)], model.trainable_weights)
        finite = update.all_finite(gradients) if dynamic else None
        settlement.finish(sums[len(parts) :], finite)
        return outcome._replace(gradients=gradients)

    def _compute_and_forget(
        self, context: Any, rows: Rows, read: Callable[[], Any], *, dynamic: bool
    ) -> Outcome:
        """Both passes on one replica; what a step that overflows has seen is forgotten."""
        if not dynamic:
            return self._compute(context, rows, read)
        with on_local_copies(context):
            before = _floats(self._model.non_trainable_variables)
        outcome = self._compute(context, rows, read)
        if before:
            with on_local_copies(context):
                finite = update.all_finite(outcome.gradients)
                for variable, value in before:
                    variable.assign(tf.where(finite, variable, value))
        return outcome

    def _weight_totals(
        self, context: Any, shard: Shard, rows: Rows, device_map: Any
    ) -> dict[int, tf.Tensor]:
        """Sums of weights over the replicas, before a compiled forward pass needs them."""
        if device_map is not None or rows.replicas == 1:
            return {}
        _, _, sample_weight = unpack_x_y_sample_weight(shard.data)
        sums = losses.weight_sums(private.compile_loss(self._model), sample_weight)
        present = tf.cast(rows.present, tf.float64) if sums else None
        totals = sum_over_replicas(context, [value * present for _, value in sums])
        return {name: total for (name, _), total in zip(sums, totals, strict=True)}

    def _compute(
        self,
        context: Any,
        rows: Rows,
        read: Callable[[], Any],
        writes: Writes | None = None,
        totals: dict[int, tf.Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Outcome:
        """Forward and, in training, backward pass: what XLA may compile."""
        model = self._model
        tape: Any = tf.GradientTape() if training else contextlib.nullcontext()
        with on_local_copies(context, writes, exchanging=True):
            x, y, sample_weight = unpack_x_y_sample_weight(read())
            with tf.name_scope("forward"), tape:
                segments = model.tfgpu_segments if training else None
                y_pred = segments(x) if segments else _call(model, x, training=training)
                note_predictions(y_pred)
                compute_loss = functools.partial(private.compute_loss, model)
                given = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
                loss = sharded_loss(
                    compute_loss, context, totals or {}, rows.real, **given, training=training
                )
                if rows.replicas > 1 and is_own(model, "compute_loss"):
                    loss = losses.of_all_rows(loss, functools.partial(exchange, context))
                if training:
                    target = losses.objective(loss, rows)
                    if model.optimizer is not None:
                        target = model.optimizer.scale_loss(target)
            gradients: list[Any] = []
            # Keras asks for `trainable_weights`, which a class may define itself.
            if training and model.trainable_weights:
                gradients = tape.gradient(target, model.trainable_weights)
                dynamic = update.has_dynamic_scale(model.optimizer)
                if rows.replicas > 1 or dynamic or not _is_sparse(x):
                    gradients = dense(gradients)
        # The default `compute_metrics` ignores `x`; returning it would copy it.
        keep_x = is_own(model, "compute_metrics")
        return Outcome(loss, y_pred, gradients, (x if keep_x else None, y, sample_weight))

    def _update(self, context: Any, gradients: list[Any]) -> Any:
        """The optimizer's step: what XLA may compile. Returns the gradients' norm, if asked."""
        model, norm = self._model, None
        if not model.trainable_weights:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return None
        with on_local_copies(context):
            if model.tfgpu_statistics is not None:
                with tf.name_scope("statistics"):
                    # Before the update, which may change the scale.
                    scale = update.loss_scale(model.optimizer)
                    scale = None if scale is None else tf.convert_to_tensor(scale, tf.float32)
                    norm = model.tfgpu_statistics.norm(gradients, scale)
            with (
                tf.name_scope("update"),
                current.having(updating=True),
                update.alike(model.optimizer),
            ):
                update.apply(model.optimizer, gradients, model.trainable_weights)
        return norm

    def _metrics(self, context: Any, outcome: Outcome, rows: Rows) -> Any:
        """Updates the metrics with this replica's rows; returns `compute_metrics`' dict."""
        model = self._model
        x, y, sample_weight = outcome.batch

        def compute(writes: Writes | None) -> Any:
            with (
                on_local_copies(context, writes),
                tf.name_scope("metrics"),
                current.having(exchange=functools.partial(exchange, context)),
            ):
                note_predictions(outcome.y_pred)
                tracker = private.loss_tracker(model)
                if tracker is not None:
                    tracker.update_state(outcome.loss, sample_weight=rows.real)
                results = model.compute_metrics(x, y, outcome.y_pred, sample_weight=sample_weight)
                tf.nest.map_structure(_usable, results)
                return results

        try:
            return settled(context, rows, compute)
        except private.InaccessibleTensorError as error:
            if not (self.uses_xla or self.inlined):
                raise
            if rows.replicas == 1 and self.metrics_with_step is None:
                raise NeedsStep from error
            raise ValueError(
                f"{type(model).__name__}.compute_metrics reads a tensor that the forward "
                "pass has kept, such as `self.losses`, and XLA compiles the forward pass "
                "apart from it. Return the tensor as an output of the model, or use "
                "jit_compile=False."
            ) from error

    # ---- XLA ----------------------------------------------------------------------------

    def _run(self, function: Callable[[], Any]) -> Any:
        """Runs `function`, compiled where the model asks for it and XLA can."""
        model = self._model
        if self.inlined:
            with for_xla():
                return function()
        if not self.uses_xla:
            return function()
        several = model.distribute_strategy.num_replicas_in_sync > 1
        layers = private.flatten_layers(model) if several else ()
        meeting = next((layer for layer in layers if getattr(layer, "synchronized", False)), None)
        if meeting is not None:
            self._leave_xla(
                f"{meeting.name} is synchronized: replicas meet in the middle of the forward pass, "
                "which XLA cannot compile. Use synchronized=False to keep XLA"
            )
            return function()
        try:
            return self._compiled(function)
        except NotCompilable as error:
            self._leave_xla(f"{error}, which XLA cannot compile")
        except Uncompilable as error:
            if not model.tfgpu_jit_is_automatic:
                raise ValueError(refusal(str(error))) from None
            self._leave_xla(str(error))
        return function()

    def _run_with_metrics(
        self, context: Any, rows: Rows, step: Callable[[], tuple[Outcome, Any]]
    ) -> tuple[Any, Any]:
        """Runs the step of one replica, and the metrics: one program of XLA if it takes both.

        Returns:
            What `step` gave beside the outcome, and what `compute_metrics` returned.
        """

        def both() -> tuple[Any, Any]:
            outcome, rest = step()
            return rest, self._metrics(context, outcome, rows)

        together = self.metrics_with_step
        if together is None:
            together = has_keras_metrics(self._model)
        if together and self.uses_xla and not self.inlined:
            try:
                return self._compiled(both)
            except (NotCompilable, Uncompilable):
                self.metrics_with_step = False
        outcome, rest = self._run(step)
        return rest, self._metrics(context, outcome, rows)

    def _compiled(self, function: Callable[[], Any]) -> Any:
        with for_xla():
            return compiled(function, layers=functools.partial(layer_scopes, self._model))

    def _leave_xla(self, reason: str) -> None:
        self.without_xla = True
        if self._model.tfgpu_said_of_xla != reason:  # Evaluation need not say it again.
            self._model.tfgpu_said_of_xla = reason
            warnings.warn(f"{reason}; the step runs without XLA.", stacklevel=2)


# ---- what steps of one's own need as well ---------------------------------------------------


def rows_of(shard: Shard, context: Any) -> Rows:
    """The row counts of a replica's shard."""
    hidden = current.noting and not current.static and not tf.executing_eagerly()
    return Rows(shard.real, shard.total, context.num_replicas_in_sync, hidden)


def begun(
    shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]
) -> tuple[Any, Rows, Callable[[], Any]]:
    """The replica context, the row counts, and what gives the batch as the model takes it."""
    context = tf.distribute.get_replica_context()

    def read() -> Any:
        with tf.name_scope("device_map"):
            return note_data(shard.data if device_map is None else device_map(shard.data, resident))

    return context, rows_of(shard, context), read


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
    own_code = current.having(own_code=True)
    with own_code, losses.sharded(real, totals=totals, exchange=adding):
        return compute_loss(*args, **kwargs)


def dense(gradients: Sequence[Any]) -> list[Any]:
    """Gradients of which none is in parts.

    The gradient of a gather is IndexedSlices: XLA cannot return one, and duplicates in it would
    make clipping and the check for finiteness see parts of it.
    """
    return [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def to_exchange(context: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """What each replica gives to the sum of the gradients, one a variable.

    That of a variable with `overwrite_with_gradient`, as float8 layers have them, is its next
    value: the largest of the replicas', by which Keras also accumulates them, and no sum. There
    each replica gives a row of its own.
    """
    row = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)

    def part(gradient: Any, variable: Any) -> Any:
        if gradient is None or not update.is_overwritten(variable):
            return gradient
        return tf.tensordot(tf.cast(row, gradient.dtype), gradient, axes=0)

    return [part(g, v) for g, v in zip(gradients, variables, strict=True)] if gradients else []


def from_exchange(sums: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The gradients of the global batch, of the sums of `to_exchange`."""

    def whole(total: Any, variable: Any) -> Any:
        if total is None or not update.is_overwritten(variable):
            return total
        return tf.reduce_max(total, axis=0)

    return [whole(s, v) for s, v in zip(sums, variables, strict=True)] if sums else []


def settled(context: Any, rows: Rows, compute: Callable[[Writes | None], Any]) -> Any:
    """Runs `compute` and brings together what it assigned."""
    if rows.replicas == 1:
        return compute(None)
    writes = writes_of(context, rows, keep=rows.may_be_absent)
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
            count = leaf.dense_shape[0] * tf.cast(rows.present, tf.int64)
            shape = tf.concat([[count], leaf.dense_shape[1:]], axis=0)
            return tf.sparse.slice(leaf, tf.zeros_like(shape), shape)
        if isinstance(leaf, tf.RaggedTensor):
            return leaf[: leaf.nrows() * tf.cast(rows.present, leaf.row_splits.dtype)]
        if isinstance(leaf, tf.Tensor):
            return leaf[: tf.shape(leaf)[0] * tf.cast(rows.present, tf.int32)]
        return leaf

    return tree.map_structure(own, outputs)


def refusal(complaint: str) -> str:
    """What to say where XLA was asked for and cannot compile the model."""
    return (
        f"jit_compile=True: {complaint}. Use jit_compile=False, or 'auto', which runs such a model "
        "without XLA."
    )


def layer_scopes(model: keras.Model) -> dict[str, str]:
    """The names of a model's layers, by the scope of the graph that each runs in."""
    layers = private.flatten_layers(model, include_self=False)
    return {layer.name: layer.name for layer in layers}


def _call(model: Any, x: Any, *, training: bool) -> Any:
    return model(x, training=training) if private.takes_training(model) else model(x)


def _usable(result: Any) -> None:
    """Raises an error for a tensor of a graph that has ended."""
    if tf.is_tensor(result):
        tf.identity(result)


def _is_sparse(x: Any) -> bool:
    """Whether a model's inputs are sparse; then the gradients may be too large to be dense."""
    return any(isinstance(leaf, tf.SparseTensor) for leaf in tree.flatten(x))


def _floats(variables: Sequence[Any]) -> list[tuple[Any, tf.Tensor]]:
    values = [(variable, tf.convert_to_tensor(variable)) for variable in variables]
    return [(variable, value) for variable, value in values if value.dtype.is_floating]
