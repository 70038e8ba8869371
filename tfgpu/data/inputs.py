"""Batches of images for `tfgpu.Model.fit`: from device memory or from disk, the same ones.

The batch of a step is a pure function of (seed, epoch, step). What travels to a replica is, with
*resident* input, the numbers of the examples, which it gathers from the data set in its own
memory; with *streaming* input, the uint8 images; and with both, the random numbers that
augmentation takes. What follows (augmentation, the model) is the same code on the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfgpu.data.augment import augment, draw
from tfgpu.data.examples import Examples
from tfgpu.engine.batches import untuned
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
class DeviceMap:
    """The part of an input pipeline that runs in the training step, on the device.

    It holds no data, so that data sets of the same kind share what was traced and compiled.

    Args:
        element_spec: Spec of what the map returns: (images, labels).
        names: Augmentations, in order.
    """

    element_spec: tuple[tf.TensorSpec, tf.TensorSpec]
    names: tuple[str, ...]

    def __call__(self, element: Any, resident: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes a replica's batch.

        Args:
            element: (draws, examples) of resident input, float32 of shape (n, numbers an
                image) and int32 of shape (n,); or (draws, images, labels) of streaming input.
            resident: The arrays of `make_resident` on this replica's device, or ().

        Returns:
            uint8 images (n, height, width, channels) and int32 labels (n,).
        """
        if resident:
            draws, examples = element
            images, labels = (tf.gather(array, examples) for array in resident)
        else:
            draws, images, labels = element
        return augment(images, draws, names=self.names), labels


class DeviceDataset(WrappedDataset):
    """A `tf.data.Dataset` whose elements a `tfgpu.Model` finishes on the device.

    Goes wherever Keras takes a data set: `fit`, `validation_data`, `evaluate`, `predict`.

    Attributes:
        device_map: Turns an element into (images, labels) in the step.
        resident: The arrays it takes, by local replica; () for streaming input.
        examples: What the batches are made of.
        num_examples: In one epoch.
        batch_size: Of the global batch.
        steps_per_epoch: Batches in one epoch.
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
    ):
        """Makes the data set.

        Args:
            dataset: The elements, global batches.
            device_map: See the class.
            resident: See the class.
            examples: See the class.
            batch_size: See the class.
            settings: See the class.
            make: Makes `dataset` from a step on, and what `cut` leaves of each element; None
                where neither is possible before it is read.
            start_step: With which `dataset` begins.
        """
        self.settings = settings
        self._make = make
        self._start_step = start_step
        self.device_map = device_map
        self.resident = resident
        self.examples = examples
        self.num_examples = examples.num_examples
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self.num_examples // batch_size)
        super().__init__(dataset)

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
        )

    def cut(self, cut: Cut) -> tf.data.Dataset:
        """What is left of the elements, of which no other row is read or decoded.

        Args:
            cut: Turns a data set of elements, or of the numbers of their examples, into one of
                `Shard`s of them or of even parts.
        """
        return cut(self.wrapped) if self._make is None else self._make(self._start_step, cut)


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


def _numbers(
    num_examples: int, *, batch_size: int, names: Sequence[str], seed: int | None, start_step: int
) -> tf.data.Dataset:
    """Yields (draws, examples) of each batch: endless with a seed, one pass in order without."""
    steps = -(-num_examples // batch_size)
    whole = num_examples % batch_size == 0

    def batches(epoch: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        order = (
            tf.range(num_examples)
            if seed is None
            else epoch_order(num_examples, seed=seed, epoch=epoch)
        )

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            start = step * batch_size
            examples = order[start : tf.minimum(start + batch_size, num_examples)]
            if whole:
                examples = tf.ensure_shape(examples, [batch_size])
            draws = draw(batch_size, names=names, seed=seed or 0, step=epoch * steps + step)
            return draws[: tf.size(examples)], examples

        return tf.data.Dataset.range(first, steps).map(batch)

    if seed is None:
        return batches(tf.constant(0, tf.int64), tf.constant(0, tf.int64))
    first_epoch, first_step = divmod(start_step, steps)

    def from_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        return batches(epoch, tf.where(epoch == first_epoch, np.int64(first_step), np.int64(0)))

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    # Said, because a `flat_map` has no known size, and one that may end has to be watched.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return epochs.flat_map(from_epoch).apply(endless)


def _batches(
    examples: Examples,
    resident: Resident,
    *,
    names: Sequence[str],
    seed: int | None,
    batch_size: int,
    start_step: int = 0,
) -> DeviceDataset:
    """Makes the data set: from a step on with a seed, of an evaluation without."""
    shape = examples.image_shape
    spec = (tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32))

    def fetch(*element: Any) -> Any:
        shard = element[0] if isinstance(element[0], Shard) else None
        draws, positions = element if shard is None else shard.data
        images, labels = examples.batch(tf.cast(positions, tf.int64))
        size = positions.shape[0]
        images, labels = tf.ensure_shape(images, [size, *shape]), tf.ensure_shape(labels, [size])
        read = (draws, images, labels)
        return read if shard is None else shard._replace(data=read)

    def make(step: int, cut: Cut | None) -> tf.data.Dataset:
        dataset = _numbers(
            examples.num_examples, batch_size=batch_size, names=names, seed=seed, start_step=step
        )
        if cut is not None:
            dataset = cut(dataset)
        if not resident:
            dataset = dataset.map(
                fetch, num_parallel_calls=hardware.usable_cores(), deterministic=True
            )
        return untuned(dataset.prefetch(PREFETCHED))

    return DeviceDataset(
        make(start_step, None),
        device_map=DeviceMap(element_spec=spec, names=tuple(names)),
        resident=resident,
        examples=examples,
        batch_size=batch_size,
        settings={"augment": list(names), "seed": seed or 0, "batch_size": batch_size},
        make=make,
        start_step=start_step,
    )


def make_resident(examples: Examples, strategy: tf.distribute.Strategy) -> Resident:
    """Reads all examples into the memory of each of the strategy's devices.

    Args:
        examples: A split.
        strategy: Its replicas each get a copy.

    Returns:
        For each replica of this process, uint8 images (n, height, width, channels) and int32
        labels (n,), on its device.

    Raises:
        DataError: An image or a record is damaged.
    """
    arrays = examples.load_arrays()
    if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
        devices: Sequence[str | None] = [None]  # TensorFlow's choice.
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
    augment: Sequence[str] = (),
    resident: Resident = (),
    start_step: int = 0,
) -> DeviceDataset:
    """An endless data set of shuffled batches for `fit(..., steps_per_epoch=...)`.

    Every epoch visits each example once; its last batch may be smaller.

    Args:
        examples: The training split.
        batch_size: Of the global batch.
        seed: With the epoch it decides the order, with the step the augmentation.
        augment: Names of augmentations, in order.
        resident: What `make_resident` returned, or () to read from disk.
        start_step: The first step, counted from the beginning of the run.

    Returns:
        A data set whose `steps_per_epoch` is to be given to `fit`.
    """
    return _batches(
        examples, resident, names=augment, seed=seed, batch_size=batch_size, start_step=start_step
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
    return _batches(examples, resident, names=(), seed=None, batch_size=batch_size)
