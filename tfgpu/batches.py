"""Deals the batches of a `tf.data.Dataset` out to the replicas of a strategy.

Keras hands a data set to `tf.distribute`, which gives a replica an empty batch
when the last global batch has fewer examples than there are replicas. An empty
batch aborts the process in oneDNN's max-pool gradient and gives NaN statistics
under XLA. Here the global batch is padded first (by repeating its last row, with
weight 0), so every replica always runs the same number of rows, at least one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from tfgpu.loss_weights import Padding


class PaddedBatch(NamedTuple):
    """One replica's rows of a padded global batch.

    Attributes:
        data: What the data set yields, (rows, ...) a tensor.
        real: int32 scalar, real rows here; they come first.
        total: int32 scalar, real rows of the global batch.
        rows: int32 scalar, rows of the global batch with padding.
    """

    data: Any
    real: tf.Tensor
    total: tf.Tensor
    rows: tf.Tensor

    @property
    def padding(self) -> Padding:
        """The row counts, without the data."""
        return Padding(real=self.real, total=self.total, rows=self.rows)


class Shares(NamedTuple):
    """The rows of all replicas of a global batch; on CPUs each takes its own with `own_share`.

    Attributes:
        of_all: A `PaddedBatch`, or what the data set yields: (replicas, rows each, ...) a tensor.
    """

    of_all: Any


def own_share(element: Any) -> Any:
    """What is this replica's of an element of `Batches`; in replica context."""
    if not isinstance(element, Shares):
        return element
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    with tf.name_scope("input"):
        return tf.nest.map_structure(lambda tensor: tensor[replica], element.of_all)


class Batches:
    """The batches of a data set as a strategy's replicas get them.

    Args:
        dataset: Yields global batches: (rows, ...) a tensor, the same number of rows in
            each tensor of a batch.
        strategy: The strategy whose replicas share each batch.
        num_batches: Batches in the data set, where the caller knows what its
            cardinality does not tell.
        steps_per_epoch: Batches an epoch, when the data set is to be cut into
            epochs; None: an epoch is the data set.

    Attributes:
        exact: Whether executions have to end where `cut_every` and the epoch say.
        cut_every: Steps, of the run, at whose multiples executions end; None: wherever.
        alone: Steps, of the run, that are executions of their own with `exact`; None: none is.
        padded: Whether a replica gets a `PaddedBatch`; otherwise it gets what the data
            set yields, or its share of it. See `own_share`.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        *,
        num_batches: int | None = None,
        steps_per_epoch: int | None = None,
    ):
        self.element_spec = dataset.element_spec
        self.source = dataset
        self.steps_per_epoch = steps_per_epoch
        self.device_map = getattr(dataset, "device_map", None)
        self.exact = False
        self.cut_every: int | None = None
        self.alone: range | None = None
        self._strategy = strategy
        self._start_step = 0
        self._done = 0
        self._dataset: Any = None
        cardinality = int(dataset.cardinality())
        self.num_batches = cardinality if cardinality >= 0 else num_batches
        self.endless = cardinality == tf.data.INFINITE_CARDINALITY

        replicas = strategy.num_replicas_in_sync
        rows = _static_rows(dataset.element_spec) if replicas > 1 else None
        # A data set of our own says what size to pad to, so that XLA sees one shape.
        pad_to = getattr(dataset, "pad_to", None)
        self.padded = pad_to is not None or (
            replicas > 1 and (rows is None or rows % replicas != 0)
        )
        self._pad_to = pad_to

    def seek(self, step: int, *, done: int = 0) -> None:
        """Makes the next iteration begin at a step, counted from the first one of all.

        Args:
            step: Of the run.
            done: Steps of the first epoch that need not be done any more; as many as it has
                when only its end is missing.

        Raises:
            TypeError: The data set is not a `tfgpu.data` one, whose batches are a function
                of the step.
        """
        from_step = getattr(self.source, "from_step", None)
        if from_step is None:
            raise TypeError(
                "only the data sets of tfgpu.data can begin at a given step; make this one "
                "with tfgpu.data.inputs.training_batches"
            )
        self.source = from_step(step)
        self._start_step, self._done = step, done
        self._dataset = None

    def executions(self, epoch_iterator: Any) -> Iterator[tuple[int, int, Any]]:
        """Stands in for `_enumerate_iterator` of Keras' iterator over an epoch.

        Yields:
            First and last step of each execution, in the epoch, and what to read. Keras' own
            are all of one length, so that the last overshoots; with `exact` set they start
            where `seek` said and end where `cut_every` and the epoch say.
        """
        if not self.exact:
            yield from type(epoch_iterator)._enumerate_iterator(epoch_iterator)
            return
        if epoch_iterator._current_iterator is None:
            epoch_iterator._current_iterator = iter(self)
        iterator = epoch_iterator._current_iterator
        done, self._done = self._done, 0
        while done < (self.steps_per_epoch or 0):
            steps = iterator.available(epoch_iterator.steps_per_execution)
            yield done, done + steps - 1, iterator
            done += steps

    def __iter__(self) -> BatchIterator:
        if self._dataset is None:
            self._dataset = self._distribute()
        with _untuned_devices():
            return BatchIterator(iter(self._dataset), self, position=self._start_step)

    def _distribute(self) -> Any:
        strategy, dataset = self._strategy, self.source
        replicas = strategy.num_replicas_in_sync
        shared = self.padded or replicas > 1
        # Whoever turns tuning off reads ahead by other means, such as the workers of a
        # keras.utils.PyDataset, which stop with the epoch and must not be asked for more then.
        ahead = self.device_map is not None or dataset.options().autotune.enabled is not False
        if shared:
            dataset = _share_rows(
                dataset,
                replicas=replicas,
                padded=self.padded,
                pad_to=self._pad_to,
                # Splitting is nothing to do at the same time.
                parallel=tf.data.AUTOTUNE if ahead and self.padded else None,
            )
        if _is_default(strategy) or _is_cpu(strategy):
            # Nothing has to be brought to a device, and what TensorFlow does to bring it takes
            # 0.1 s to set up, for every pass over the data, and some of each step.
            if shared and replicas == 1:
                dataset = dataset.map(_only_share)
            # Without that, data of our own have been read ahead already.
            return (
                dataset.prefetch(tf.data.AUTOTUNE)
                if ahead and (shared or self.device_map is None)
                else dataset
            )

        def shares(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = replicas // context.num_input_pipelines
            first = local * context.input_pipeline_id
            mine = _deal(dataset, first=first, local=local) if shared else dataset
            # For a data set it takes for endless TensorFlow leaves out its own handling
            # of partial batches: a `cond` and a collective in every step.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            mine = mine.apply(endless)
            return mine.prefetch(2 * local) if ahead else mine

        return strategy.distribute_datasets_from_function(shares)


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same data set without tf.data's autotuning.

    There is little to tune here, and the thread that does it sleeps for up to a minute at a time,
    for the rest of which the end of an iterator may wait (TensorFlow 2.21): between two trainings
    of one process that was seen to take 40 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def end_of_data(error: tf.errors.OpError) -> bool:
    """Whether `error` says that `Batches` of unknown size were read past their end."""
    return isinstance(error, tf.errors.OutOfRangeError) or (
        isinstance(error, tf.errors.FailedPreconditionError)
        and "expected to contain an infinite number of elements" in error.message
    )


class BatchIterator:
    """Reads `Batches` and knows how many steps the epoch has left.

    Attributes:
        source: The iterator that a `tf.function` reads.
        batches: What is iterated over.
        exhausted: Set by the reader when data of unknown size has ended.
    """

    def __init__(self, source: Iterator[Any], batches: Batches, *, position: int = 0):
        self.source = source
        self.batches = batches
        self._position = position
        self._first = position
        self.exhausted = False

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Any:
        if self.take(1) == 0:
            raise StopIteration
        return next(self.source)

    def take(self, steps: int) -> int:
        """Reserves up to `steps` batches for one execution.

        Returns:
            How many; see `available`.
        """
        steps = self.available(steps)
        self._position += steps
        return steps

    def available(self, steps: int) -> int:
        """How many of the next `steps` batches one execution may read.

        Returns:
            How many there are before the end of the epoch and of the data; 0 at the
            end. When the size of the data is not known (`sized`), reading what was
            reserved may fail with an error for which `end_of_data` is true.
        """
        if self.exhausted:
            return 0
        batches = self.batches
        # Of data of known size Keras reads full executions, past the end of an epoch that
        # `steps_per_epoch` cuts out of it: its callbacks count them so.
        if (epoch := batches.steps_per_epoch) and (batches.exact or batches.num_batches is None):
            steps = min(steps, epoch - self._position % epoch)
        if batches.num_batches is not None:
            steps = min(steps, batches.num_batches - (self._position - self._first))
        if batches.cut_every:
            steps = min(steps, batches.cut_every - self._position % batches.cut_every)
        if batches.exact and batches.alone is not None:
            if self.alone:
                steps = min(steps, 1)
            elif self._position < batches.alone.start:
                steps = min(steps, batches.alone.start - self._position)
        return steps

    @property
    def alone(self) -> bool:
        """Whether the next batch is to be an execution of its own."""
        alone = self.batches.alone
        return self.batches.exact and alone is not None and self._position in alone

    @property
    def sized(self) -> bool:
        """Whether `take` never promises more batches than there are."""
        return self.batches.num_batches is not None or self.batches.endless


def can_deal(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> bool:
    """Whether `dataset` can be made `Batches`: every component is a dense tensor with rows.

    For one replica, which gets the elements as they are, an optional component will do.
    """
    alone = strategy.num_replicas_in_sync == 1
    return all(
        (isinstance(leaf, tf.TensorSpec) and bool(leaf.shape.rank))
        or (alone and isinstance(leaf, tf.OptionalSpec))
        for leaf in tf.nest.flatten(dataset.element_spec)
    )


def share_out(batch: Any, strategy: tf.distribute.Strategy) -> Any:
    """Deals one global batch out to the replicas.

    Args:
        batch: Arrays, tensors and None; (rows, ...) each. Anything else makes each
            replica get all of it, as in Keras.
        strategy: Of more than one replica.

    Returns:
        What `strategy.run` takes: a `PaddedBatch` for each replica, or `batch`.
    """
    replicas = strategy.num_replicas_in_sync
    flat = [
        leaf if leaf is None or tf.is_tensor(leaf) else tf.convert_to_tensor(leaf)
        for leaf in tf.nest.flatten(batch)
    ]
    if not all(leaf is None or (isinstance(leaf, tf.Tensor) and leaf.shape.rank) for leaf in flat):
        return batch
    shares = _spread(tf.nest.pack_sequence_as(batch, flat), replicas=replicas, pad_to=None)

    def share(tensor: tf.Tensor | None) -> Any:
        if tensor is None:
            return None
        return strategy.experimental_distribute_values_from_function(
            lambda context: tensor[context.replica_id_in_sync_group]
        )

    return tf.nest.map_structure(share, shares)


@contextlib.contextmanager
def _untuned_devices() -> Iterator[None]:
    """Turns autotuning off for the part of a distributed iterator that lies on the devices.

    It has nothing to tune, and its thread holds the end of the iterator up, see `untuned`.
    """
    create = multi_device_iterator_ops._create_device_dataset

    def create_untuned(*args: Any) -> tf.data.Dataset:
        return untuned(create(*args))

    multi_device_iterator_ops._create_device_dataset = create_untuned
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = create


def _is_cpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether all replicas are in this process and on its CPU."""
    kinds = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)
    return isinstance(strategy, kinds) and all(
        tf.DeviceSpec.from_string(device).device_type == "CPU"
        for device in strategy.extended.worker_devices
    )


def _is_default(strategy: tf.distribute.Strategy) -> bool:
    # The strategy of code outside every scope has no public name.
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


def _static_rows(spec: Any) -> int | None:
    """The rows of a global batch when every component states the same number."""
    rows = {leaf.shape[0] for leaf in tf.nest.flatten(spec)}
    return rows.pop() if len(rows) == 1 else None


def _share_rows(
    dataset: tf.data.Dataset,
    *,
    replicas: int,
    padded: bool,
    pad_to: int | None,
    parallel: int | None,
) -> tf.data.Dataset:
    """Maps batches to `Shares`."""

    @tf.autograph.experimental.do_not_convert
    def share(*data: Any) -> Shares:
        batch = data[0] if len(data) == 1 else data
        if padded:
            return Shares(_spread(batch, replicas=replicas, pad_to=pad_to))
        return Shares(_split(batch, replicas=replicas))

    deterministic = None if parallel is None else True
    return dataset.map(share, num_parallel_calls=parallel, deterministic=deterministic)


def _spread(batch: Any, *, replicas: int, pad_to: int | None) -> PaddedBatch:
    """Pads a global batch: (replicas, rows each, ...) a tensor."""
    total = tf.shape(next(t for t in tf.nest.flatten(batch) if t is not None))[0]
    each = tf.constant(pad_to // replicas) if pad_to else -(-total // replicas)
    rows = each * replicas
    source = tf.minimum(tf.range(rows), total - 1)

    def spread(tensor: tf.Tensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        shape = tf.concat([[replicas, each], tf.shape(tensor)[1:]], axis=0)
        spread = tf.reshape(tf.gather(tensor, source), shape)
        static = pad_to // replicas if pad_to else None
        return tf.ensure_shape(spread, [replicas, static, *tensor.shape[1:]])

    real = tf.clip_by_value(total - each * tf.range(replicas), 0, each)
    everywhere = tf.ones([replicas], tf.int32)
    return PaddedBatch(
        tf.nest.map_structure(spread, batch), real, total * everywhere, rows * everywhere
    )


@tf.autograph.experimental.do_not_convert
def _only_share(batch: Shares) -> Any:
    return tf.nest.map_structure(lambda t: t[0], batch.of_all)


def _deal(dataset: tf.data.Dataset, *, first: int, local: int) -> tf.data.Dataset:
    """Turns `Shares` into the elements of replicas `first` to `first + local`, in turn."""

    @tf.autograph.experimental.do_not_convert
    def mine(batch: Shares) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(
            tf.nest.map_structure(lambda t: t[first : first + local], batch.of_all)
        )

    return dataset.flat_map(mine)


def _split(batch: Any, *, replicas: int) -> Any:
    """(rows, ...) to (replicas, rows each, ...) a tensor, of a number of rows that divides."""
    return tf.nest.map_structure(
        lambda t: (
            tf.reshape(t, [replicas, t.shape[0] // replicas, *t.shape[1:]])
            if t.shape.is_fully_defined()
            else tf.stack(tf.split(t, replicas))
        ),
        batch,
    )
