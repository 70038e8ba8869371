"""Brings the batches of a `tf.data.Dataset` to the replicas of a strategy.

Keras hands a data set to `tf.distribute`, which gives a replica an empty batch when the last
global batch has fewer examples than there are replicas. Here each replica's rows are cut by
`shards`: in the step where all replicas are on this process's CPU, and in the data set where
each has a device, or a process, of its own. What is on a CPU is read without `tf.distribute`.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.batch_sizes import BatchSizes
from tfgpu.engine.datasets import draws_when_begun, may_be_read_ahead, untuned
from tfgpu.engine.shards import Shard, row_count, shard_of


def own_shard(element: Any, *, whole: bool) -> Shard:
    """What is this replica's of an element of `Batches`; in replica context.

    Args:
        element: As the iterator gave it.
        whole: Whether it is the global batch, and not this replica's part of it.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if isinstance(element, Shard):
        return element._replace(data=_none_for_optional(element.data))
    data = _none_for_optional(element)
    if replicas == 1:
        rows = row_count(data)
        rows = 1 if rows is None else rows
        return Shard(data, rows, rows)
    if whole:
        replica = tf.get_static_value(context.replica_id_in_sync_group)
        return shard_of(data, replica=int(replica), replicas=replicas)
    # An even part: see `Batches`.
    rows = row_count(data)
    assert rows is not None
    return Shard(data, rows, rows * replicas)


def _none_for_optional(data: Any) -> Any:
    # Keras stands a tf Optional in for a None in the inputs.
    return tree.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data
    )


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
        continued: See the attribute.
        sizes: See the attribute, where the caller knows it.

    Attributes:
        exact: Whether executions have to end where `cut_every` and the epoch say.
        steps_per_execution: Of the epoch that is enumerated; the model's may be another since.
        cut_every: Steps, of the run, at whose multiples executions end; None: wherever.
        alone: Steps, of the run, that are executions of their own with `exact`; None: none is.
        whole: Whether each replica gets the global batch, to cut its rows out with `own_shard`.
        resident: The arrays that the device map takes, by local replica.
        batch_size: Of every batch but a smaller last one, where the data set says it.
        continued: Whether each iteration goes on where the one before has ended.
        offset: What is added to a step of the run for the step that `tfgpu.data` makes: not 0
            where a training begins elsewhere in the data.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        *,
        num_batches: int | None = None,
        steps_per_epoch: int | None = None,
        continued: bool = False,
        sizes: BatchSizes | None = None,
    ):
        self._sizes = sizes
        self.continued = continued
        self.element_spec = dataset.element_spec
        self.source = dataset
        self.steps_per_epoch = steps_per_epoch
        self.device_map = getattr(dataset, "device_map", None)
        self.batch_size: int | None = getattr(dataset, "batch_size", None)
        self.exact = False
        self.steps_per_execution: int | None = None
        self.cut_every: int | None = None
        self.alone: range | None = None
        self._strategy = strategy
        self.offset = 0
        self._start_step = 0
        self._done = 0
        self._dataset: Any = None
        cardinality = int(dataset.cardinality())
        self.num_batches = cardinality if cardinality >= 0 else num_batches
        self.endless = cardinality == tf.data.INFINITE_CARDINALITY

        self.resident: Sequence[Sequence[tf.Tensor]] = getattr(dataset, "resident", ())
        # On a CPU nothing has to be brought to a device, and what TensorFlow does to bring it
        # takes 0.1 s to set up, for every pass over the data, and some of each step. Of resident
        # data only the numbers of the examples travel, and on the way there and back again.
        alone = strategy.num_replicas_in_sync == 1 and bool(self.resident)
        self._direct = private.is_default(strategy) or _is_cpu(strategy) or alone
        self._local = local_replicas(strategy)
        self._draws = draws_when_begun(dataset)
        self.whole = self._direct and not has_several_workers(strategy)

    @property
    def sizes(self) -> BatchSizes | None:
        """How many rows the batches have, where that is known beforehand."""
        if not self.whole:
            return None
        return BatchSizes.of(self.source) if self._sizes is None else self._sizes

    @property
    def model_spec(self) -> Any:
        """Spec of a batch as the model takes it: of what the device map gives, if there is one."""
        return self.element_spec if self.device_map is None else self.device_map.element_spec

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
        self.source = from_step(step + self.offset)
        self._start_step, self._done = step, done
        self._dataset = None

    def executions(self, epoch_iterator: Any) -> Iterator[tuple[int, int, Any]]:
        """Enumerates the executions of an epoch in the place of Keras' iterator over it.

        Yields:
            First and last step of each execution, in the epoch, and what to read. Keras' own
            are all of one length, so that the last overshoots; with `exact` set they start
            where `seek` said and end where `cut_every` and the epoch say. Of data of unknown
            size none is begun that finds nothing, nor trains past `steps_per_epoch`.
        """
        self.steps_per_execution = epoch_iterator.steps_per_execution
        if self.exact:
            yield from self._exact_executions(epoch_iterator)
        elif self.num_batches is None and not self.endless:
            yield from self._executions_as_read(epoch_iterator)
        else:
            yield from private.enumerated(epoch_iterator)

    def _exact_executions(self, epoch_iterator: Any) -> Iterator[tuple[int, int, Any]]:
        if private.current_iterator(epoch_iterator) is None:
            private.current_iterator.set(epoch_iterator, iter(self))
        iterator = private.current_iterator(epoch_iterator)
        done, self._done = self._done, 0
        while done < (self.steps_per_epoch or 0):
            steps = iterator.available(epoch_iterator.steps_per_execution)
            yield done, done + steps - 1, iterator
            done += steps

    def _executions_as_read(self, epoch_iterator: Any) -> Iterator[tuple[int, int, Any]]:
        adapter, epoch = epoch_iterator.data_adapter, self.steps_per_epoch
        adapter.on_epoch_begin()
        begun = private.current_iterator(epoch_iterator) is not None
        if not begun or epoch is None or self.continued:
            private.current_iterator.set(epoch_iterator, iter(self))
        iterator, done = private.current_iterator(epoch_iterator), 0
        while epoch is None or done < epoch:
            wanted = epoch_iterator.steps_per_execution
            if epoch is not None:
                wanted = min(wanted, epoch - done)
            steps = iterator.read_ahead(wanted)
            if steps == 0:
                break
            # Keras' own tests have it that the last execution counts as a whole one.
            yield done, done + wanted - 1, iterator
            done += steps
        if epoch is None:
            private.known_batches.set(epoch_iterator, done)  # For the progress bar.
        elif done < epoch:
            private.warn_of_interruption(epoch_iterator)
            private.current_iterator.set(epoch_iterator, None)
        adapter.on_epoch_end()

    def __iter__(self) -> BatchIterator:
        if self._dataset is None:
            self._dataset = self._distribute()
        iterator = BatchIterator(self._dataset, self, position=self._start_step)
        if self._draws:
            # Made now, since that decides the order of the next one.
            iterator.source  # noqa: B018
        return iterator

    def _distribute(self) -> Any:
        strategy, dataset = self._strategy, self.source
        replicas = strategy.num_replicas_in_sync
        ahead = self.device_map is not None or may_be_read_ahead(dataset)
        rows = _static_rows(dataset.element_spec)
        even = rows is not None and rows % replicas == 0

        if replicas > 1 and not self.whole:
            cut = functools.partial(cut_rows, local=self._local, replicas=replicas, even=even)
            # A data set that reads rows by their numbers reads no other's.
            cut_early = getattr(dataset, "cut", None)
            dataset = cut(dataset) if cut_early is None else cut_early(cut)
        if self._direct:
            ahead = ahead and self.device_map is None  # Our own have been read ahead already.
            return dataset.prefetch(tf.data.AUTOTUNE) if ahead else dataset

        def shards(context: tf.distribute.InputContext) -> tf.data.Dataset:
            # For a data set it takes for endless TensorFlow leaves out its own handling
            # of partial batches: a `cond` and a collective in every step.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            mine = dataset.apply(endless)
            return mine.prefetch(2 * len(self._local)) if ahead else mine

        return strategy.distribute_datasets_from_function(shards)


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether there are replicas in other processes."""
    replicas = strategy.num_replicas_in_sync  # The default strategy names no devices.
    return replicas > 1 and len(strategy.extended.worker_devices) < replicas


def local_replicas(strategy: tf.distribute.Strategy) -> range:
    """The numbers of the replicas of this process among all of the strategy."""
    if not has_several_workers(strategy):
        return range(strategy.num_replicas_in_sync)
    numbers: list[int] = []

    def note(context: tf.distribute.experimental.ValueContext) -> int:
        numbers.append(context.replica_id_in_sync_group)
        return 0

    strategy.experimental_distribute_values_from_function(note)
    return range(numbers[0], numbers[-1] + 1)


def cut_rows(
    dataset: tf.data.Dataset, *, local: range, replicas: int, even: bool
) -> tf.data.Dataset:
    """Turns global batches into the parts of some replicas, in turn.

    Args:
        dataset: Yields batches of (rows, ...) tensors.
        local: The numbers of the replicas.
        replicas: Of the strategy.
        even: Whether each part is to be what the data set yields, of a static number of rows that
            is the same for all replicas, and not a `Shard`.
    """

    def part(batch: tuple[Any, ...], replica: Any) -> Any:
        data = batch[0] if len(batch) == 1 else batch
        shard = shard_of(data, replica=replica, replicas=replicas)
        if not even:
            real, total = tf.cast(shard.real, tf.int32), tf.cast(shard.total, tf.int32)
            return Shard(shard.data, real, total)

        def sized(leaf: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(leaf, [whole.shape[0] // replicas, *whole.shape[1:]])

        return tree.map_structure(sized, shard.data, data)

    @tf.autograph.experimental.do_not_convert
    def the_one(*batch: Any) -> Any:
        return part(batch, local.start)

    @tf.autograph.experimental.do_not_convert
    def parts(*batch: Any) -> tf.data.Dataset:
        @tf.autograph.experimental.do_not_convert
        def part_of(replica: tf.Tensor) -> Any:
            return part(batch, tf.cast(replica, tf.int32))

        return tf.data.Dataset.range(local.start, local.stop).map(part_of)

    return dataset.map(the_one) if len(local) == 1 else dataset.flat_map(parts)


def _end_of_data(error: tf.errors.OpError) -> bool:
    """Whether `error` says that `Batches` of unknown size were read past their end."""
    return isinstance(error, tf.errors.OutOfRangeError) or (
        isinstance(error, tf.errors.FailedPreconditionError)
        and "expected to contain an infinite number of elements" in error.message
    )


class BatchIterator:
    """Reads `Batches` and knows how many steps the epoch has left.

    Args:
        dataset: The batches of `batches` as this process's replicas get them.
        batches: See the attribute.
        position: The step of the run that the first batch is for.

    Attributes:
        batches: What is iterated over.
        input_seconds: Seconds spent in `read_ahead`, until somebody sets it back.
        ahead: What comes before the batches of `source`, and may still be being read; None for
            nothing. See `compiled_loop`.
    """

    def __init__(self, dataset: Any, batches: Batches, *, position: int = 0):
        self._dataset = dataset
        self.batches = batches
        self._position = position
        self._first = position
        self._exhausted = False
        self._ahead: list[Any] = []
        self._promised: int | None = None
        self.input_seconds = 0.0
        self.ahead: Future[Any] | None = None

    @functools.cached_property
    def source(self) -> Iterator[Any]:
        """The iterator that a `tf.function` reads."""
        # Made when it is first read: it takes 20 to 40 ms, and at the end of each evaluation
        # Keras asks for one that nobody reads.
        with _untuned_devices():
            return iter(self._dataset)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Any:
        if not self.sized:
            if not self.read_ahead(1):
                raise StopIteration
            (batch,) = self.take_read(1)
            return batch
        if self.take(1) == 0:
            raise StopIteration
        return next(self.source)

    def read_ahead(self, steps: int) -> int:
        """Reads up to `steps` batches of data of unknown size.

        Returns:
            How many there are, for `take_read`; fewer than asked for at the end of the data.
        """
        start = time.perf_counter()
        while len(self._ahead) < steps and not self._exhausted:
            try:
                self._ahead.append(next(self.source))
            except (StopIteration, tf.errors.OpError) as error:
                if not isinstance(error, StopIteration) and not _end_of_data(error):
                    raise
                self._exhausted = True
        self.input_seconds += time.perf_counter() - start
        self._promised = min(steps, len(self._ahead))
        return self._promised

    def take_read(self, steps: int) -> list[Any]:
        """The batches that `read_ahead` promised last, or else up to `steps` of them."""
        if self._promised is None:
            self.read_ahead(steps)
        count, self._promised = self._promised, None
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return taken

    def take(self, steps: int) -> int:
        """Reserves up to `steps` batches of data whose size is known, for one execution.

        Returns:
            How many; see `available`.
        """
        steps = self.available(steps)
        self._position += steps
        return steps

    def available(self, steps: int) -> int:
        """How many of the next `steps` batches one execution may read.

        Returns:
            How many there are before the end of the epoch and of the data; 0 at the end.
        """
        batches = self.batches
        # Of data of known size Keras reads full executions, past the end of an epoch that
        # `steps_per_epoch` cuts out of it: its callbacks count them so.
        if (epoch := batches.steps_per_epoch) and (batches.exact or batches.endless):
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

    def full_batches(self, steps: int) -> tuple[int, int | None]:
        """See `BatchSizes.full`; of the `steps` batches that were taken last."""
        sizes = self.batches.sizes
        if sizes is None:
            return steps, None
        return sizes.full(self._position - self._first, steps)

    @property
    def alone(self) -> bool:
        """Whether the next batch is to be an execution of its own."""
        alone = self.batches.alone
        return self.batches.exact and alone is not None and self._position in alone

    def most_steps(self, model: Any) -> int:
        """The steps of a whole execution: of the epoch that is enumerated, or else the model's."""
        steps: int = self.batches.steps_per_execution or model.steps_per_execution
        return steps

    @functools.cached_property
    def of_any_rank(self) -> bool:
        """Whether a component of the batches is of unknown rank until it is there."""
        specs = tf.nest.flatten(self.batches.source.element_spec)
        return any(getattr(spec, "shape", tf.TensorShape([])).rank is None for spec in specs)

    @property
    def sized(self) -> bool:
        """Whether the size of the data is known, so that `take` is for them."""
        return self.batches.num_batches is not None or self.batches.endless


@contextlib.contextmanager
def _untuned_devices() -> Iterator[None]:
    """Turns autotuning off for the part of a distributed iterator that lies on the devices.

    It has nothing to tune, and its thread holds the end of the iterator up, see `untuned`.
    """
    create = private.create_device_dataset.function

    def create_untuned(*args: Any) -> tf.data.Dataset:
        return untuned(create(*args))

    private.create_device_dataset.replace(create_untuned)
    try:
        yield
    finally:
        private.create_device_dataset.replace(create)


def _is_cpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether all replicas of this process are on its CPU."""
    kinds = (
        tf.distribute.MirroredStrategy,
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )
    return isinstance(strategy, kinds) and all(
        tf.DeviceSpec.from_string(device).device_type == "CPU"
        for device in strategy.extended.worker_devices
    )


def _static_rows(spec: Any) -> int | None:
    """The rows of a global batch of dense tensors when every component states the same number."""
    rows = set()
    for leaf in tf.nest.flatten(spec):
        if not isinstance(leaf, tf.TensorSpec) or not leaf.shape.rank:
            return None
        rows.add(leaf.shape[0])
    return rows.pop() if len(rows) == 1 else None
