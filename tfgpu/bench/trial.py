"""A trial of a benchmark: one configuration, built once and timed on request.

It runs in a process of its own; see `tfgpu.bench.process`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.bench import interleaved_timing
from tfgpu.bench import layers as layers_lib
from tfgpu.bench.settings import BenchSettings
from tfgpu.cli.console import Stopwatch
from tfgpu.data.augment import draw_numbers
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import (
    DeviceDataset,
    DeviceMap,
    make_resident,
    training_batches,
    with_others,
)
from tfgpu.engine import all_reduce
from tfgpu.engine.batches import Batches, BatchIterator
from tfgpu.errors import RequestError
from tfgpu.machine import flops as flops_lib
from tfgpu.models.builders import find_builder
from tfgpu.train import mixing, recipe
from tfgpu.train.recipe import Resolved
from tfgpu.train.session import Session

ALL_REDUCE_BYTES = 16 << 20


class Trial:
    """A model with its data, to be trained on request.

    Attributes:
        config: The settings, resolved.
        machine: Devices and strategy.
        data: The data set.
        model: Compiled.
        examples: The training split.
    """

    def __init__(self, config: BenchSettings):
        """Finds devices and data and builds the model.

        Raises:
            tfgpu.errors.Error: The request or the data is at fault.
        """
        if config.model is not None and ":" in config.model:
            find_builder(config.model)  # Before the data, which may take long.
        session = Session.open(config, stopwatch=Stopwatch())
        self.machine, self.data = session.machine, session.data
        self.examples = self.data.train
        task = self.data.task
        self.config: Resolved = recipe.resolve_for(
            config.training,
            self.data,
            replicas=self.machine.num_replicas,
            on_gpu=self.machine.on_gpu,
        )
        builder = find_builder(self.config.model, task.models, task=task.name)
        strategy = self.machine.strategy
        steps = -(-self.examples.num_examples // self.config.batch_size)
        with strategy.scope():
            self.model = recipe.build_model(config, builder, **task.arguments(self.data.spec))
            if not isinstance(self.model, keras.Model):
                raise RequestError(
                    f"--model={config.model} returned {type(self.model).__name__}; return a "
                    "tfgpu.Model"
                )
            recipe.rematerialize(config, self.model)
            self.model.compile(
                optimizer=recipe.make_optimizer(self.config, steps_per_epoch=steps),
                loss=task.loss(self.data.spec, self.config.to_json()),
                metrics=mixing.make_metrics(self.config, self.data),
                steps_per_execution=self.config.steps_per_execution,
                jit_compile=self.machine.jit_compile,
            )
        self._batches: DeviceDataset | None = None
        self._running: _Running | None = None
        self._held: dict[int, _Running] = {}

    def allow_tensor_float_32(self, allowed: bool) -> None:
        """Says whether float32 products may be computed in TF32; TensorFlow's default is yes."""
        tf.config.experimental.enable_tensor_float_32_execution(allowed)

    def run_eagerly(self) -> None:
        """Runs one operation after another from Python, without a graph; before `build`."""
        self.model.run_eagerly = True

    def leave_out_exchange(self) -> None:
        """Replicas stop to exchange gradients, and learn each by itself; before `build`."""
        all_reduce.exchanging = False

    def build(self) -> dict[str, Any]:
        """Loads resident data, traces and compiles the training step.

        Returns:
            "compile_seconds" of the first executions, and the resolved configuration.
        """
        config = self.config
        batches = training_batches(
            self.examples,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=recipe.transformations(config, self.data.task),
            resident=(
                make_resident(self.examples, self.machine.strategy)
                if config.input == "resident"
                else ()
            ),
            num_classes=mixing.mixed_classes(config, self.data),
        )
        self._batches = batches
        start = time.perf_counter()
        # From the end of an epoch on: its last batch may have another shape, which is compiled too.
        first_step = max(0, batches.steps_per_epoch - config.steps_per_execution)
        self._running = self._run(batches, first_step=first_step)
        for _ in range(2):
            self._running.execute()
        self._running.wait()
        first = time.perf_counter() - start
        return {
            "compile_seconds": max(0.0, first - 2 * self._running.time(0.2)),
            "model": config.model,
            "replicas": self.machine.num_replicas,
            "batch_size": config.batch_size,
            "devices": list(self.machine.devices),
            "intra_op_threads": self.machine.intra_op_threads,
            "parameters": self.model.count_params(),
        }

    def train(self, seconds: float) -> float:
        """Trains for about that long; returns examples per second."""
        assert self._running is not None
        return self._running.rate(seconds)

    def data_alone(self, seconds: float) -> float:
        """Returns the seconds that the input pipeline alone takes for a step."""
        assert self._batches is not None
        iterator = iter(Batches(self._batches, self.machine.strategy))

        def read(steps: int) -> None:
            for _ in range(steps):
                next(iterator)

        read(8)  # Starts the pipeline and its prefetching.
        return _per_step(read, seconds)

    def compute_alone(self, seconds: float, *, batch_size: int | None = None) -> float:
        """Returns the seconds of a step on a batch that is on the device already.

        Args:
            seconds: To spend.
            batch_size: The global batch size; the configuration's by default.
        """
        size = batch_size or self.config.batch_size
        if size not in self._held:
            self._held[size] = self._run(self._fixed(size))
        return self._held[size].time(seconds) / self.config.steps_per_execution

    def all_reduce(self, seconds: float) -> float:
        """Returns the bytes per second of a sum over all replicas, of tensors of 16 MiB."""
        strategy = self.machine.strategy
        # A value per replica: the sum of a common one TensorFlow computes without communication.
        values = strategy.experimental_distribute_values_from_function(
            lambda context: tf.fill(
                [ALL_REDUCE_BYTES // 4], float(context.replica_id_in_sync_group)
            )
        )

        @tf.function
        def reduce() -> Any:
            def replica(value: tf.Tensor) -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                return context.all_reduce(tf.distribute.ReduceOp.SUM, value)[:1]

            sums = strategy.experimental_local_results(strategy.run(replica, args=(values,)))
            return tf.concat(sums, axis=0)

        spent = interleaved_timing.repeat(lambda: reduce().numpy(), seconds=seconds)
        return ALL_REDUCE_BYTES / spent

    def layers(self, seconds: float) -> dict[str, Any]:
        """Returns operations, bytes and times of the layers, and of a whole step."""
        found = layers_lib.measure(
            self.model,
            batch=self.config.batch_size,
            device=self.machine.devices[0],
            seconds=seconds,
        )
        parameters = sum(int(np.prod(weight.shape)) for weight in self.model.trainable_weights)
        counted = flops_lib.count(self.model)
        return {
            "flops": counted.training * self.config.batch_size,
            "uncounted": list(counted.uncounted),
            "traffic": layers_lib.step_traffic(found, parameters=parameters),
            "layers": [dataclasses.asdict(layer) for layer in found],
        }

    def _fixed(self, size: int) -> DeviceDataset:
        """Makes an endless data set of one batch, which the devices hold."""
        transformations = recipe.transformations(self.config, self.data.task)
        width = sum(each.numbers for each in transformations)
        some = np.arange(size) % self.examples.num_examples
        batch: Examples = self.examples.take(some)
        zero = tf.constant(0, tf.int64)
        draws = draw_numbers(size, width=width, seed=self.config.seed, step=zero)
        element = with_others(draws, tf.range(size), transformations)
        return DeviceDataset(
            tf.data.Dataset.from_tensors(element).repeat(),
            device_map=DeviceMap.of(
                batch,
                transformations=transformations,
                num_classes=mixing.mixed_classes(self.config, self.data),
            ),
            resident=make_resident(batch, self.machine.strategy),
            examples=batch,
            batch_size=size,
            settings={},
        )

    def _run(self, batches: DeviceDataset, *, first_step: int = 0) -> _Running:
        if first_step:
            batches = batches.from_step(first_step)
        return _Running(self.model, batches, self.machine.strategy, first_step=first_step)


class _Running:
    """A training that continues where it stopped: the executions of one endless `fit`."""

    def __init__(
        self,
        model: keras.Model,
        batches: DeviceDataset,
        strategy: tf.distribute.Strategy,
        *,
        first_step: int,
    ):
        self._steps = int(model.steps_per_execution)
        self._examples, self._batch = batches.num_examples, batches.batch_size
        self._epoch = batches.steps_per_epoch
        self._position = first_step
        self._iterator: BatchIterator = iter(Batches(batches, strategy))
        if model.train_function is None:
            # One step of `fit` creates the variables of the optimizer and the metrics.
            model.fit(batches, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)
        self._execution: Callable[[Any], Any] = model.make_train_function()
        self._last: Any = None

    def execute(self) -> None:
        """Starts one execution, which a GPU runs asynchronously."""
        self._last = self._execution(self._iterator)
        self._position += self._steps

    def wait(self) -> None:
        """Waits until the device has finished all executions."""
        if self._last is not None:
            float(self._last["loss"])

    def time(self, seconds: float) -> float:
        """Returns the median seconds of an execution."""

        def work() -> None:
            self.execute()
            self.wait()

        return interleaved_timing.repeat(work, seconds=seconds)

    def rate(self, seconds: float) -> float:
        """Returns examples per second, over about that many seconds."""
        self.wait()
        begin, start = self._position, time.perf_counter()
        elapsed = 0.0
        while elapsed < seconds:
            # A few at once, so that a GPU is not waited for after each.
            for _ in range(4):
                self.execute()
            self.wait()
            elapsed = time.perf_counter() - start
        return (self._seen(self._position) - self._seen(begin)) / elapsed

    def _seen(self, steps: int) -> int:
        """Returns the examples in the first steps; the last batch of an epoch may be smaller."""
        epochs, rest = divmod(steps, self._epoch)
        return epochs * self._examples + rest * self._batch


def _per_step(work: Callable[[int], object], seconds: float) -> float:
    """Returns the seconds of a step, from runs of more and more steps."""
    steps = 1
    while True:
        start = time.perf_counter()
        work(steps)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 2:
            return elapsed / steps
        steps *= 2
