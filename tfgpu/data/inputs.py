"""Batches of images for `tfgpu.Model.fit`: from device memory or from disk, the same ones.

The batch of a step is a pure function of (seed, epoch, step). What travels to a
replica is, with *resident* input, the numbers of the examples, which it gathers from
the data set in its own memory; with *streaming* input, the uint8 images; and with both,
the random numbers that augmentation takes. Everything behind that (augmentation, the
model) is the same code on the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu import hardware
from tfgpu.batches import untuned
from tfgpu.data.augment import augment, draw
from tfgpu.data.examples import Examples

PREFETCHED = 8
"""Batches that are read ahead."""


class DeviceMap:
    """The part of an input pipeline that runs in the training step, on the device.

    Args:
        element_spec: Spec of what the map returns: (images, labels).
        resident: Variables that hold the images and the labels, or ().
        names: Augmentations, in order.

    Attributes:
        variables: What to read, in replica context, and pass to the call.
    """

    def __init__(
        self,
        *,
        element_spec: tuple[tf.TensorSpec, tf.TensorSpec],
        resident: Sequence[tf.Variable],
        names: Sequence[str],
    ):
        self.element_spec = element_spec
        self.variables = tuple(resident)
        self._names = tuple(names)

    def __call__(self, element: Any, values: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes a replica's batch.

        Args:
            element: (draws, examples) of resident input, float32 of shape (n, numbers an
                image) and int32 of shape (n,); or (draws, images, labels) of streaming input.
            values: Values of `variables`.

        Returns:
            uint8 images (n, height, width, channels) and int32 labels (n,).
        """
        if values:
            draws, examples = element
            images, labels = (tf.gather(value, examples) for value in values)
        else:
            draws, images, labels = element
        return augment(images, draws, names=self._names), labels


class DeviceDataset(tf.data.Dataset):
    """A `tf.data.Dataset` whose elements a `tfgpu.Model` finishes on the device.

    Goes wherever Keras takes a data set: `fit`, `validation_data`, `evaluate`, `predict`.

    Attributes:
        device_map: Turns an element into (images, labels) in the step.
        pad_to: Rows every batch is padded to (with weight 0), or None.
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
        examples: Examples,
        batch_size: int,
        pad: bool,
        settings: dict[str, Any],
        from_step: Callable[[int], tf.data.Dataset] | None = None,
    ):
        self.settings = settings
        self._dataset = dataset
        self._from_step = from_step
        self._pad = pad
        self.device_map = device_map
        self.examples = examples
        self.num_examples = examples.num_examples
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self.num_examples // batch_size)
        self.pad_to = batch_size if pad and self.num_examples % batch_size else None
        super().__init__(dataset._variant_tensor)

    def from_step(self, step: int) -> DeviceDataset:
        """The same data set beginning at a step, counted from the beginning of the run.

        Raises:
            TypeError: It is an evaluation's data set, which always begins at the beginning.
        """
        if self._from_step is None:
            raise TypeError("a data set for evaluation has no steps to begin at")
        return DeviceDataset(
            self._from_step(step),
            device_map=self.device_map,
            examples=self.examples,
            batch_size=self.batch_size,
            pad=self._pad,
            settings=self.settings,
            from_step=self._from_step,
        )

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> Any:
        """Spec of what travels to the device."""
        return self._dataset.element_spec


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
    num_examples: int,
    *,
    batch_size: int,
    names: Sequence[str],
    seed: int | None,
    start_step: int,
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


def _finish(
    examples: Examples,
    numbers: Callable[[int], tf.data.Dataset],
    resident: Sequence[tf.Variable],
    *,
    names: Sequence[str],
    seed: int,
    batch_size: int,
    pad: bool,
    start_step: int | None,
) -> DeviceDataset:
    """Puts what travels to the device behind the example numbers from a step on."""
    shape = examples.image_shape
    spec = (tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32))

    def fetch(draws: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, labels = examples.batch(tf.cast(positions, tf.int64))
        size = positions.shape[0]
        return (
            draws,
            tf.ensure_shape(images, [size, *shape]),
            tf.ensure_shape(labels, [size]),
        )

    def from_step(step: int) -> tf.data.Dataset:
        dataset = numbers(step)
        if not resident:
            dataset = dataset.map(
                fetch, num_parallel_calls=hardware.usable_cores(), deterministic=True
            )
        return untuned(dataset.prefetch(PREFETCHED))

    return DeviceDataset(
        from_step(start_step or 0),
        device_map=DeviceMap(element_spec=spec, resident=resident, names=names),
        examples=examples,
        batch_size=batch_size,
        pad=pad,
        settings={"augment": list(names), "seed": seed, "batch_size": batch_size},
        from_step=None if start_step is None else from_step,
    )


class _LocalCopies:
    """An array on each device of this worker; reads as the copy of the replica that asks.

    The first of several workers would send a variable's value to the others, which TensorFlow
    cannot do with uint8 and need not: every worker reads the data itself.
    """

    def __init__(self, array: np.ndarray, *, devices: Sequence[str], name: str):
        self._copies = []
        for device in devices:
            with tf.device(device):
                self._copies.append(tf.Variable(array, trainable=False, name=name))

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
        copy = self._copies[replica % len(self._copies)]
        return tf.convert_to_tensor(copy, dtype=dtype, name=name)


def make_resident(examples: Examples, strategy: tf.distribute.Strategy) -> tuple[Any, ...]:
    """Reads all examples into the memory of each of the strategy's devices.

    Args:
        examples: A split.
        strategy: Its replicas each get a copy.

    Returns:
        What a replica reads as tensors: uint8 images (n, height, width, channels) and int32
        labels (n,).

    Raises:
        DataError: An image or a record is damaged.
    """
    arrays = examples.load_arrays()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        devices = strategy.extended.worker_devices
        return tuple(
            _LocalCopies(array, devices=devices, name=name)
            for array, name in zip(arrays, ("resident_images", "resident_labels"), strict=True)
        )
    with strategy.scope():
        return tuple(
            tf.Variable(array, trainable=False, name=name)
            for array, name in zip(arrays, ("resident_images", "resident_labels"), strict=True)
        )


def training_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    augment: Sequence[str] = (),
    resident: Sequence[tf.Variable] = (),
    start_step: int = 0,
    pad: bool = True,
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
        pad: Whether to pad the last batch of an epoch to `batch_size` rows of weight 0. XLA
            then compiles one shape, and replicas share it evenly.

    Returns:
        A data set whose `steps_per_epoch` is to be given to `fit`.
    """

    def numbers(step: int) -> tf.data.Dataset:
        return _numbers(
            examples.num_examples,
            batch_size=batch_size,
            names=augment,
            seed=seed,
            start_step=step,
        )

    return _finish(
        examples,
        numbers,
        resident,
        names=augment,
        seed=seed,
        batch_size=batch_size,
        pad=pad,
        start_step=start_step,
    )


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    resident: Sequence[tf.Variable] = (),
    pad: bool = True,
) -> DeviceDataset:
    """A data set that yields each example once, in order, without augmentation.

    Args:
        examples: The split.
        batch_size: Of the global batch.
        resident: What `make_resident` returned, or () to read from disk.
        pad: As for `training_batches`.

    Returns:
        A data set for `evaluate`, `predict` or `validation_data`.
    """

    def numbers(step: int) -> tf.data.Dataset:
        return _numbers(
            examples.num_examples, batch_size=batch_size, names=(), seed=None, start_step=step
        )

    return _finish(
        examples,
        numbers,
        resident,
        names=(),
        seed=0,
        batch_size=batch_size,
        pad=pad,
        start_step=None,
    )
