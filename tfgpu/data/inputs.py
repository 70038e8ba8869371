"""Batches for `tfgpu.Model.fit`: from device memory or from disk, the same ones.

The batch of a step is a pure function of (seed, epoch, step). What travels to a replica is, with
*resident* input, the numbers of the examples, which it gathers from the data set in its own
memory; with *streaming* input, the decoded examples; and with both, the random numbers that
augmentation takes. What follows (augmentation, the model) is the same code on the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfgpu.data import augmentations
from tfgpu.data.augment import (
    Transformation,
    alternated,
    draw_numbers,
    mix,
    numbers_of_others,
    transform,
)
from tfgpu.data.examples import Examples
from tfgpu.data.gathering import gather
from tfgpu.engine.datasets import untuned
from tfgpu.engine.keras_internals import WrappedDataset
from tfgpu.engine.shards import Shard
from tfgpu.machine import hardware

PREFETCHED = 8
"""Batches that are read ahead."""

Cut: TypeAlias = Callable[[tf.data.Dataset], tf.data.Dataset]
"""Takes from each element of a data set the rows of the replicas of one process."""

Resident = tuple[tuple[tf.Tensor, ...], ...]
"""Arrays in the memory of each device of this process; see `make_resident`."""


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """A weight for each example, by its class.

    Attributes:
        values: One a class.
    """

    values: tuple[float, ...]

    def __call__(self, y: tf.Tensor) -> tf.Tensor:
        """Labels, integers (n,), or probabilities (n, classes) -> float32 (n,)."""
        values = tf.constant(self.values, tf.float32)
        return tf.linalg.matvec(y, values) if y.dtype.is_floating else tf.gather(values, y)


@dataclasses.dataclass(frozen=True)
class DeviceMap:
    """The part of an input pipeline that runs in the training step, on the device.

    It holds no data, so that data sets of the same kind share what was traced and compiled.

    Args:
        element_spec: Spec of what the map returns, of a batch: (x, y), or (x, y, weights).
        transformations: Augmentations, in order.
        weigh: Gives each example a weight, or None.
        num_classes: Where examples are mixed: of the probabilities that labels become.
    """

    element_spec: tuple[Any, ...]
    transformations: tuple[Transformation, ...] = ()
    weigh: ClassWeights | None = None
    num_classes: int = 0

    def __hash__(self) -> int:
        # Dicts have no hash of their own.
        specs = tuple(tf.nest.flatten(self.element_spec))
        return hash((specs, self.transformations, self.weigh, self.num_classes))

    @classmethod
    def of(
        cls,
        examples: Examples,
        *,
        transformations: Sequence[Transformation] = (),
        weigh: ClassWeights | None = None,
        num_classes: int = 0,
    ) -> DeviceMap:
        """The map for batches of such examples.

        Raises:
            ValueError: They are to be mixed, and have no classes.
        """
        spec = tf.nest.map_structure(
            lambda one: tf.TensorSpec([None, *one.shape], one.dtype), examples.element_spec
        )
        if mix(transformations):
            if sum(each.mixes for each in transformations) > 1:
                names = " and ".join(each.name for each in transformations if each.mixes)
                raise ValueError(f"{names} both mix examples: one of them can")
            if not num_classes:
                raise ValueError("examples are mixed by their classes: num_classes says how many")
            spec = (spec[0], tf.TensorSpec([None, num_classes], tf.float32))
        else:
            num_classes = 0
        if weigh is not None:
            spec = (*spec, tf.TensorSpec([None], tf.float32))
        return cls(spec, tuple(transformations), weigh, num_classes)

    def __call__(self, element: Any, resident: Sequence[tf.Tensor]) -> tuple[Any, ...]:
        """Makes a replica's batch.

        Args:
            element: (draws, examples) of resident input, float32 of shape (n, numbers an
                example) and int32 of shape (n,), or (n, 2) with those to mix with beside; or
                (draws, x, y) of streaming input, and then x and y of those to mix with.
            resident: The arrays of `make_resident` on this replica's device, or ().

        Returns:
            x and y, and the weights if there are any.
        """
        draws, *parts = element
        if resident:
            [examples] = parts
            several = tf.unstack(examples, axis=1) if self.num_classes else [examples]
            parts = []
            for some in several:
                found = [gather(array, some) for array in resident]
                parts += tf.nest.pack_sequence_as(self.element_spec[:2], found)
        x, y, *others = parts
        if self.num_classes:
            y = tf.one_hot(y, self.num_classes)
            others = [others[0], tf.one_hot(others[1], self.num_classes)]
        x, y = transform(
            x,
            y,
            draws,
            transformations=self.transformations,
            others=(others[0], others[1]) if others else None,
        )
        return (x, y) if self.weigh is None else (x, y, self.weigh(y))


class DeviceDataset(WrappedDataset):
    """A `tf.data.Dataset` whose elements a `tfgpu.Model` finishes on the device.

    Goes wherever Keras takes a data set: `fit`, `validation_data`, `evaluate`, `predict`.

    Attributes:
        device_map: Turns an element into (x, y), or (x, y, weights), in the step.
        resident: The arrays it takes, by local replica; () for streaming input.
        examples: What the batches are made of.
        num_examples: In one epoch.
        batch_size: Of the global batch.
        steps_per_epoch: Batches in one epoch.
        start_step: Of the run, with which the elements begin.
        settings: What decides the batches besides the examples, as JSON holds it.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        *,
        device_map: DeviceMap,
        resident: Resident,
        examples: Examples,
        batch_size: int,
        settings: dict[str, Any],
        make: Callable[[int, Cut | None], tf.data.Dataset] | None = None,
        start_step: int = 0,
        steps_per_epoch: int | None = None,
    ):
        """Makes the data set.

        Args:
            dataset: The elements, global batches.
            device_map: See the class.
            resident: See the class.
            examples: See the class.
            batch_size: See the class.
            settings: See the class.
            make: Makes `dataset` from a step on, and what `cut` leaves of it; None: it cannot.
            start_step: With which `dataset` begins.
            steps_per_epoch: See the class; None for all examples.
        """
        self.settings = settings
        self._make = make
        self.start_step = start_step
        self.device_map = device_map
        self.resident = resident
        self.examples = examples
        self.num_examples = examples.num_examples
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch or -(-self.num_examples // batch_size)
        super().__init__(dataset)

    def first(self, count: int) -> DeviceDataset:
        """Batches of the first examples alone, each once, in order, without augmentation."""
        some = np.arange(min(count, self.num_examples))
        return evaluation_batches(self.examples.take(some), batch_size=self.batch_size)

    def from_step(self, step: int) -> DeviceDataset:
        """The same data set beginning at a step, counted from the beginning of the run.

        Raises:
            TypeError: It is an evaluation's data set, which always begins at the beginning.
        """
        if self._make is None or self.cardinality() != tf.data.INFINITE_CARDINALITY:
            raise TypeError("a data set for evaluation has no steps to begin at")
        return DeviceDataset(
            self._make(step, None),
            device_map=self.device_map,
            resident=self.resident,
            examples=self.examples,
            batch_size=self.batch_size,
            settings=self.settings,
            make=self._make,
            start_step=step,
            steps_per_epoch=self.steps_per_epoch,
        )

    def cut(self, cut: Cut) -> tf.data.Dataset:
        """What is left of the elements, of which no other row is read or decoded.

        Args:
            cut: Turns a data set of elements, or of the numbers of their examples, into one of
                `Shard`s of them or of even parts.
        """
        return cut(self.wrapped) if self._make is None else self._make(self.start_step, cut)


def epoch_order(num_examples: int, *, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The order in which an epoch visits the examples.

    Args:
        num_examples: In the data set.
        seed: Of the run.
        epoch: int64 scalar.

    Returns:
        int32 (num_examples,), a permutation that depends on nothing but the arguments.
    """
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.stateless_shuffle(tf.range(num_examples), key, alg="philox")


def with_others(
    draws: tf.Tensor, examples: tf.Tensor, transformations: Sequence[Transformation]
) -> tuple[tf.Tensor, tf.Tensor]:
    """(draws, examples) of a batch as `DeviceMap` takes them, with the other to mix each with.

    That is the example before it in the global batch, which is in random order. It travels by
    its number and its draws: whichever replica has the row knows them.

    Args:
        draws: float32 (n, numbers an example).
        examples: int32 (n,).
        transformations: Of which one may mix.
    """
    if not mix(transformations):
        return draws, examples
    theirs = tf.roll(draws[:, : numbers_of_others(transformations)], 1, axis=0)
    return tf.concat([draws, theirs], axis=1), tf.stack([examples, tf.roll(examples, 1, 0)], axis=1)


def _numbers(
    num_examples: int,
    *,
    batch_size: int,
    transformations: Sequence[Transformation],
    seed: int | None,
    start_step: int,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """Yields (draws, examples) of each batch: endless with a seed, one pass in order without."""
    steps = _steps(num_examples, batch_size, drop_remainder=drop_remainder)
    whole = steps * batch_size <= num_examples
    kept = [each.alternating for each in transformations for _ in range(each.numbers)]
    width = len(kept)

    def of_epoch(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The order of an epoch, and the numbers of what alternates."""
        order = epoch_order(num_examples, seed=seed or 0, epoch=epoch)
        if not any(kept):
            return order, tf.zeros([0, width])
        return order, alternated(num_examples, width=width, seed=seed or 0, epoch=epoch)

    def batch(number: tf.Tensor, order: tf.Tensor, of_examples: tf.Tensor) -> Any:
        start = number % steps * batch_size
        examples = order[start : tf.minimum(start + batch_size, num_examples)]
        if whole:
            examples = tf.ensure_shape(examples, [batch_size])
        draws = draw_numbers(batch_size, width=width, seed=seed or 0, step=number)
        draws = draws[: tf.size(examples)]
        if any(kept):
            draws = tf.where(kept, tf.gather(of_examples, examples), draws)
        return with_others(draws, examples, transformations)

    if seed is None:
        order = tf.range(num_examples)
        return tf.data.Dataset.range(steps).map(lambda step: batch(step, order, order))

    def next_batch(state: Any, number: tf.Tensor) -> Any:
        epoch, known = number // steps, state[1:]
        order, of_examples = tf.cond(
            tf.equal(state[0], epoch), lambda: known, lambda: of_epoch(epoch)
        )
        return (epoch, order, of_examples), batch(number, order, of_examples)

    # One data set, and not one of each epoch's: that takes half as long to begin. The state holds
    # the epoch that its order is of, none at first.
    none = tf.constant(-1, tf.int64)
    empty = tf.zeros([num_examples if any(kept) else 0, width])
    numbers = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    batches = numbers.scan((none, tf.zeros([num_examples], tf.int32), empty), next_batch)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return batches.apply(endless)


def _steps(num_examples: int, batch_size: int, *, drop_remainder: bool) -> int:
    """Batches in one epoch."""
    return num_examples // batch_size if drop_remainder else -(-num_examples // batch_size)


def _batches(
    examples: Examples,
    resident: Resident,
    *,
    transformations: Sequence[Transformation],
    seed: int | None,
    batch_size: int,
    weigh: ClassWeights | None = None,
    num_classes: int = 0,
    start_step: int = 0,
    drop_remainder: bool = False,
) -> DeviceDataset:
    """Makes the data set: from a step on with a seed, of an evaluation without."""
    mixing = mix(transformations)

    def batch_of(positions: tf.Tensor) -> tuple[Any, Any]:
        size = positions.shape[0]
        x, y = tf.nest.map_structure(
            lambda leaf, spec: tf.ensure_shape(leaf, [size, *spec.shape]),
            examples.batch(tf.cast(positions, tf.int64)),
            examples.element_spec,
        )
        return x, y

    def fetch(*element: Any) -> Any:
        shard = element[0] if isinstance(element[0], Shard) else None
        draws, positions = element if shard is None else shard.data
        read: tuple[Any, ...]
        if not mixing:
            read = (draws, *batch_of(positions))
        elif shard is None:  # Those to mix with are in it, each a row before.
            own = batch_of(positions[:, 0])
            read = (draws, *own, *tf.nest.map_structure(lambda part: tf.roll(part, 1, 0), own))
        else:  # They may be another process's rows.
            read = (draws, *batch_of(positions[:, 0]), *batch_of(positions[:, 1]))
        return read if shard is None else shard._replace(data=read)

    def make(step: int, cut: Cut | None) -> tf.data.Dataset:
        dataset = _numbers(
            examples.num_examples,
            batch_size=batch_size,
            transformations=transformations,
            seed=seed,
            start_step=step,
            drop_remainder=drop_remainder,
        )
        if cut is not None:
            dataset = cut(dataset)
        if not resident:
            dataset = dataset.map(
                fetch, num_parallel_calls=hardware.usable_cores(), deterministic=True
            )
        return untuned(dataset.prefetch(PREFETCHED))

    names = [each.name for each in transformations]
    settings = {"augment": names, "seed": seed or 0, "batch_size": batch_size}
    if weigh is not None:
        settings["class_weight"] = list(weigh.values)
    if drop_remainder:
        settings["drop_remainder"] = True
    return DeviceDataset(
        make(start_step, None),
        device_map=DeviceMap.of(
            examples, transformations=transformations, weigh=weigh, num_classes=num_classes
        ),
        resident=resident,
        examples=examples,
        batch_size=batch_size,
        settings=settings,
        make=make,
        start_step=start_step,
        steps_per_epoch=_steps(examples.num_examples, batch_size, drop_remainder=drop_remainder),
    )


def make_resident(
    examples: Examples, strategy: tf.distribute.Strategy, *, arrays: Any = None
) -> Resident:
    """Reads all examples into the memory of each of the strategy's devices.

    Args:
        examples: A split.
        strategy: Its replicas each get a copy.
        arrays: What `examples.load_arrays` returned, where it has been called.

    Returns:
        For each replica of this process, the tensors of x and y on its device, flat.

    Raises:
        DataError: A record is damaged.
    """
    arrays = tf.nest.flatten(examples.load_arrays() if arrays is None else arrays)
    if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
        # Where TensorFlow puts a model's variables. Left to itself, it may keep labels on the host.
        gpus = tf.config.list_logical_devices("GPU")
        devices: Sequence[str | None] = [gpus[0].name if gpus else None]
    else:
        devices = strategy.extended.worker_devices
    copies = []
    for device in devices:
        with tf.device(device):
            copies.append(tuple(tf.constant(array) for array in arrays))
    return tuple(copies)


def training_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    augment: Sequence[str | Transformation] = (),
    resident: Resident = (),
    class_weights: ClassWeights | None = None,
    num_classes: int = 0,
    start_step: int = 0,
    drop_remainder: bool = False,
) -> DeviceDataset:
    """An endless data set of shuffled batches for `fit(..., steps_per_epoch=...)`.

    Every epoch visits each example once, in an order of its own; its last batch may be smaller.

    Args:
        examples: The training split.
        batch_size: Of the global batch.
        seed: With the epoch it decides the order, with the step the augmentation.
        augment: Augmentations, in order; names stand for those of images alone.
        resident: What `make_resident` returned, or () to read from disk.
        class_weights: Gives each example a weight by its class, or None.
        num_classes: For augmentations that mix examples: y are then probabilities of so many.
        start_step: The first step, counted from the beginning of the run.
        drop_remainder: Whether an epoch leaves out the examples that would be its smaller last
            batch: other ones in each epoch.

    Returns:
        A data set whose `steps_per_epoch` is to be given to `fit`.

    Raises:
        ValueError: `drop_remainder` leaves no batch at all.
    """
    if drop_remainder and examples.num_examples < batch_size:
        raise ValueError(
            f"batches of {batch_size} without a smaller last one need as many examples, and there "
            f"are {examples.num_examples}; use a smaller batch"
        )
    known = augmentations.of_images()
    transformations = [known[each] if isinstance(each, str) else each for each in augment]
    return _batches(
        examples,
        resident,
        transformations=transformations,
        seed=seed,
        batch_size=batch_size,
        weigh=class_weights,
        num_classes=num_classes,
        start_step=start_step,
        drop_remainder=drop_remainder,
    )


def evaluation_batches(
    examples: Examples, *, batch_size: int, resident: Resident = ()
) -> DeviceDataset:
    """A data set that yields each example once, in order, without augmentation.

    Args:
        examples: The split.
        batch_size: Of the global batch.
        resident: What `make_resident` returned, or () to read from disk.

    Returns:
        A data set for `evaluate`, `predict` or `validation_data`.
    """
    return _batches(examples, resident, transformations=(), seed=None, batch_size=batch_size)
