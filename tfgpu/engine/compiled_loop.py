"""The training steps of an execution as one program of XLA, for data in a GPU's memory.

A loop of TensorFlow around a compiled step starts each of its kernels, and those of the metrics,
from the host: for a small network that takes longer than the GPU takes for them. Here the loop, the
update of the metrics and the statistics are part of what XLA compiles, and the host meets the
device once an execution. While it starts the kernels of one, a thread reads the batches of the
next. Steps on an H200 in mixed_float16 with a dynamic loss scale, batch after batch and as one
program: LeNet, batches of 512, 1.8 to 2.4 ms and 0.52; ResNet-20 likewise 5.7 and 4.1; `airbench`,
batches of 2,000, 6.8 and 5.3.

Only what needs nothing but numbers from the host can run so, which is resident data of one replica,
and only small steps do (`MOST_WORK`). XLA's autotuning may choose other kernels for a loop than for
a step, so under `enable_op_determinism` there is none. What XLA cannot compile together runs step
by step, from the same batches.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine import xla
from tfgpu.engine.local_copies import NotCompilable, for_xla
from tfgpu.engine.replica_step import layer_scopes

if TYPE_CHECKING:
    from tfgpu.engine.batches import Batches, BatchIterator
    from tfgpu.engine.execution import Replicas

MOST_LENGTHS = 3
"""Of loops that are compiled, each for itself; executions of other lengths run step by step."""

MOST_WORK = 5e9
"""Parameters times the rows of a batch. A step of more keeps a GPU busy for some ten milliseconds,
beside which the host counts little, and its loop has not been measured."""

MOST_VALUES = 1e7
"""Values of a batch of examples, likewise: each may meet a small filter many times."""

_READER = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tfgpu-batches")


class CompiledLoop:
    """Runs executions of a model's training steps as one program each.

    Args:
        model: A compiled model.
        replicas: What runs its steps.
        one_by_one: Runs a step: (element, device map, resident arrays, whole) -> logs.

    Attributes:
        traced: The function that was traced, for those who want to see it.
    """

    def __init__(
        self,
        model: keras.Model,
        replicas: Replicas,
        *,
        one_by_one: Callable[..., Any],
    ):
        self._model: Any = model
        self._replicas = replicas
        self._one_by_one = one_by_one
        self._lengths: set[int] = set()
        self._left: str | None = None
        options = {"reduce_retracing": True, "autograph": False}
        self._read = tf.function(self._read_of, **options)
        self.traced = tf.function(self._steps_of, jit_compile=True, autograph=False)

    def takes(self, batches: Batches, steps: int) -> bool:
        """Whether the next `steps` batches are for `run`."""
        return (
            steps > 1
            and self._left is None
            and bool(batches.resident)
            and batches.batch_size is not None
            and on_gpu(batches.resident[0])
            and self._can_compile()
            and self._model.built
            and self._is_small(batches)
            and self._has_length_for(steps)
        )

    def _is_small(self, batches: Batches) -> bool:
        """Whether a step is one that the host would hold up."""
        rows = batches.batch_size or 0
        parameters = sum(math.prod(variable.shape) for variable in self._model.variables)
        values = sum(math.prod(array.shape[1:]) for array in batches.resident[0])
        return rows * parameters <= MOST_WORK and rows * values <= MOST_VALUES

    def _has_length_for(self, steps: int) -> bool:
        """Whether `steps`, or all but a smaller last one, are a length that may be compiled."""
        known = not self._lengths.isdisjoint((steps, steps - 1))
        return known or len(self._lengths) < MOST_LENGTHS

    def _can_compile(self) -> bool:
        model, step = self._model, self._replicas.replica_step
        return bool(
            step.uses_xla
            and not self._replicas.own
            and not self._replicas.own_results
            and model.distribute_strategy.num_replicas_in_sync == 1
            and not private.op_determinism_enabled()
        )

    def run(self, iterator: BatchIterator, given: tuple[Any, Any, bool], steps: int) -> Any:
        """Reads and runs steps; returns the logs.

        Args:
            iterator: Of which `steps` batches are reserved.
            given: Device map, resident arrays, and whether a batch is the global one.
            steps: 2 or more.
        """
        rows = iterator.batches.batch_size or 0
        elements, counts = self._taken(iterator, steps)
        following = iterator.available(iterator.most_steps(self._model))
        if (
            iterator.ahead is None
            and not iterator.alone
            and self.takes(iterator.batches, following)
        ):
            iterator.ahead = _READER.submit(self._read_ahead, iterator, following)
        logs, at = None, 0
        while at < steps:
            length = _equal(counts, at, rows)
            some = elements if length == steps else _rows(elements, slice(at, at + length))
            together = length > 1 and self._compiles(length)
            logs = self._results(some, *given[:2], length) if together else None
            if logs is None:
                if self._model.tfgpu_statistics is not None:
                    self._model.tfgpu_statistics.latest(None)
                for number in range(at, at + length):
                    one = _rows(_rows(elements, number), slice(counts[number]))
                    logs = self._one_by_one(one, *given)
            at += length
        return logs

    def _taken(self, iterator: BatchIterator, steps: int) -> tuple[Any, list[int]]:
        """The next batches of an iterator: stacked, and the rows of each."""
        start = time.perf_counter()
        elements, counts = None, []
        if iterator.ahead is not None:
            elements, counts = iterator.ahead.result()
            iterator.ahead = None
        if len(counts) > steps:  # Somebody has changed `steps_per_execution`.
            iterator.ahead = concurrent.futures.Future()
            iterator.ahead.set_result((_rows(elements, slice(steps, None)), counts[steps:]))
            elements, counts = _rows(elements, slice(steps)), counts[:steps]
        elif len(counts) < steps:
            more, rest = self._read_stacked(iterator, steps - len(counts))
            both = (elements, more)
            elements = tf.nest.map_structure(lambda *p: tf.concat(p, 0), *both) if counts else more
            counts = counts + rest
        if self._model.tfgpu_statistics is not None:
            self._model.tfgpu_statistics.input_seconds.assign_add(time.perf_counter() - start)
        return elements, counts

    def _read_ahead(self, iterator: BatchIterator, steps: int) -> tuple[Any, list[int]]:
        """`_read_stacked` in a thread, to which the strategy is to be told."""
        with self._model.distribute_strategy.scope():
            return self._read_stacked(iterator, steps)

    def _read_stacked(self, iterator: BatchIterator, steps: int) -> tuple[Any, list[int]]:
        rows = iterator.batches.batch_size or 0
        elements, counts = self._read(iterator.source, tf.constant(steps), rows)
        return elements, counts.numpy().tolist()

    def _compiles(self, length: int) -> bool:
        """Whether there is a program of so many steps, or is to be one."""
        if self._left is not None or not self._can_compile():
            return False
        if length not in self._lengths and len(self._lengths) == MOST_LENGTHS:
            return False
        self._lengths.add(length)
        return True

    def _results(self, elements: Any, device_map: Any, resident: Any, length: int) -> Any:
        """Runs whole batches as one program; None if they cannot be, and nothing has happened."""
        statistics = self._model.tfgpu_statistics
        try:
            with self._inlined(), for_xla():
                norm, results = self.traced(elements, device_map, resident, length)
        except (NotCompilable, xla.Uncompilable) as error:
            self._leave(str(error))
        except tf.errors.OpError as error:
            # The program assigns nothing before its end. What is wrong with the data or with the
            # model itself is found again step by step.
            complaint = xla.complaint(error, layer_scopes(self._model))
            self._leave(complaint or error.message.splitlines()[0])
        else:
            if statistics is not None:
                statistics.latest(norm)
            return results
        return None

    def _leave(self, reason: str) -> None:
        self._left = reason
        warnings.warn(
            f"{reason}; each step is compiled for itself, and not all of an execution as one.",
            stacklevel=2,
        )

    @contextlib.contextmanager
    def _inlined(self) -> Iterator[None]:
        """Around the tracing of a program, of which the step is a part that it need not compile."""
        step = self._replicas.replica_step
        before, step.inlined = step.inlined, True
        try:
            yield
        finally:
            step.inlined = before

    # ---- what is traced -----------------------------------------------------------------

    def _read_of(self, source: Any, steps: tf.Tensor, rows: int) -> tuple[Any, tf.Tensor]:
        """Reads batches on the host: stacked, filled up to `rows`, and the rows of each."""
        spec = source.element_spec
        leaves = tf.nest.flatten(spec)

        def body(at: tf.Tensor, counts: Any, *arrays: Any) -> Any:
            parts = tf.nest.flatten(next(source))
            count = tf.shape(parts[0])[0]
            filled = []
            for part, one in zip(parts, leaves, strict=True):
                part = tf.pad(part, [[0, rows - count], *[[0, 0]] * (one.shape.rank - 1)])
                filled.append(tf.ensure_shape(part, [rows, *one.shape[1:]]))
            written = [array.write(at, part) for array, part in zip(arrays, filled, strict=True)]
            return (at + 1, counts.write(at, count), *written)

        with tf.device("CPU:0"), tf.name_scope("input"):
            arrays = [
                tf.TensorArray(one.dtype, steps, element_shape=[rows, *one.shape[1:]])
                for one in leaves
            ]
            counts = tf.TensorArray(tf.int32, steps, element_shape=[])
            _, counts, *arrays = tf.while_loop(
                lambda at, *_: at < steps, body, [0, counts, *arrays], parallel_iterations=1
            )
            stacked = [array.stack() for array in arrays]
            return tf.nest.pack_sequence_as(spec, stacked), counts.stack()

    def _steps_of(
        self, elements: Any, device_map: Any, resident: Any, length: int
    ) -> tuple[tf.Tensor, Any]:
        """`length` steps.

        Returns:
            The norm of the last one's gradient, 0 where nobody asks, and the results of the
            metrics.
        """
        statistics = self._model.tfgpu_statistics

        def body(at: tf.Tensor, norm: tf.Tensor) -> Any:
            element = tf.nest.map_structure(lambda part: part[at], elements)
            held = contextlib.nullcontext([]) if statistics is None else statistics.held()
            with held as norms:
                self._replicas.run(element, device_map, resident, whole=True)
            return at + 1, norms[-1] if norms else norm

        begin = [tf.constant(0), tf.constant(0.0)]
        _, norm = tf.while_loop(
            lambda at, _: at < length,
            body,
            begin,
            maximum_iterations=length,
            parallel_iterations=1,
        )
        # In a function of their own they took 2 ms, for which the GPU had nothing to do.
        results = self._replicas.logs(None)
        xla.check(tf.compat.v1.get_default_graph(), layers=lambda: layer_scopes(self._model))
        return norm, results


def on_gpu(arrays: Any) -> bool:
    """Whether resident arrays of a replica are in a GPU's memory."""
    return all("GPU" in array.device for array in arrays)


def _equal(counts: list[int], at: int, rows: int) -> int:
    """How many batches from `at` on have all rows; 1 where that one has not."""
    end = at
    while end < len(counts) and counts[end] == rows:
        end += 1
    return max(1, end - at)


def _rows(elements: Any, which: int | slice) -> Any:
    """Rows of each of some tensors."""
    return tf.nest.map_structure(lambda part: part[which], elements)
