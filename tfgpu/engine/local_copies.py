"""Lets code for one device run on one replica's copies of the variables.

Under `tf.distribute` a variable is a container of one copy a replica. Keras' own forward
pass, losses, metrics and optimizers, and what users write beside them, are code for one device:
they read and assign variables wherever it suits them, in a `tf.cond` or a loop too. Inside
`on_local_copies` they find what they would find there: no strategy, one replica, and every
variable is the copy of the replica that asks. Nothing meets another device, so XLA can compile
it, update in place, and no state is lost. What the replicas owe each other is done outside:
gradients are summed (`replica_step`), and assigned state is brought together again (`state`).

TensorFlow itself has this way of running for what `tf.distribute.StrategyExtended.update` calls.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine.assignments import Former, Writes
from tfgpu.engine.current import current
from tfgpu.engine.python_state import PythonState
from tfgpu.engine.temporary import ThreadState

# An odd constant (2^32 / golden ratio) spreads neighbours over the key space.
_SPREAD = 2654435769


class NotCompilable(Exception):
    """A replica has to ask the others in the middle of what XLA was to compile."""

    def __str__(self) -> str:
        # Keras tells of the layer where it happens, around what was said, which it prints in bold.
        return re.sub(r".*\x1b\[1m(.*)\x1b\[0m.*", r"\1", super().__str__(), flags=re.DOTALL)


class _Current(ThreadState):
    """What this thread is tracing or running.

    Attributes:
        local: Whether inside `on_local_copies`.
        replica: The number of the replica whose step it is; 0 outside.
        writes: Where assignments are noted, or None.
        former: Where values from before an assignment are kept, or None.
        compiling: Whether what is traced is for XLA.
        layers: Of the model that is called, of which each replica sees what it has left there.
        several: Whether this is the step of one of several replicas.
        graph: The graph around what is traced for XLA.
        totals: Sums over the replicas' copies that are there already, by identity of the variable.
        met: In a step: what the replicas have put together, by identity.
    """

    local = False
    replica = 0
    writes: Writes | None = None
    former: Former | None = None
    compiling = False
    layers: Sequence[Any] = ()
    several = False
    graph: Any = None
    totals: Mapping[int, tf.Tensor] = MappingProxyType({})
    met: Mapping[int, tf.Tensor] = MappingProxyType({})


_current = _Current()


class _OneReplica(private.DefaultContext):
    """The context of code for one device; knows which replica it stands for."""

    def __init__(self, context: Any, *, exchanging: bool):
        super().__init__(context)
        self._exchanging = exchanging

    @property
    def replica_id_in_sync_group(self) -> Any:
        return self.replica_context.replica_id_in_sync_group

    @property
    def num_replicas_in_sync(self) -> int:
        return self.replica_context.num_replicas_in_sync

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        if not self._exchanging:
            return value
        if _current.compiling:
            raise NotCompilable("The replicas exchange something in the middle of the forward pass")

        @tf.custom_gradient
        def reduced(*tensors: tf.Tensor) -> Any:
            with _left(self):
                sums = self.replica_context.all_reduce(reduce_op, list(tensors), options)
            # The gradient of a sum over replicas is one itself.
            return sums, lambda *up: self.all_reduce(reduce_op, list(up), options)

        totals = tf.nest.flatten(reduced(*tf.nest.flatten(value)))
        _current.met = {**_current.met, **{id(total): total for total in totals}}
        return tf.nest.pack_sequence_as(value, totals)


@contextlib.contextmanager
def _left(one: _OneReplica) -> Iterator[None]:
    """Back in the strategy's own replica context, for an exchange."""
    outside = _current.having(local=False, writes=None)
    with outside, private.entered(one.replica_context, updating=False):
        yield


@contextlib.contextmanager
def on_local_copies(
    context: Any, writes: Writes | None = None, *, exchanging: bool = False
) -> Iterator[None]:
    """Runs the block as if this replica were all there is.

    Args:
        context: The replica's context, from `tf.distribute.get_replica_context()`.
        writes: Notes the variables that the block assigns.
        exchanging: Whether an all-reduce in the block, such as that of a synchronized
            BatchNormalization, asks the other replicas; if not, it finds one replica, as the
            one of Keras' optimizers must when gradients have been summed.
    """
    if not tf.distribute.has_strategy():
        yield  # There is but one replica, and it is this.
        return
    one = _OneReplica(context, exchanging=exchanging)
    with private.entered(one, updating=True), _current.having(local=True, writes=writes):
        yield


def for_xla() -> contextlib.AbstractContextManager[None]:
    """Has an exchange between replicas in the block raise `NotCompilable`."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    return _current.having(compiling=True, graph=graph)


def is_compiling() -> bool:
    """Whether what this thread traces is for XLA, by the engine's own doing."""
    return _current.compiling


def exchange(context: Any, value: Any) -> Any:
    """Sums a tensor over the replicas, from inside or outside of `on_local_copies`.

    Args:
        context: The replica's context.
        value: The same shape on each replica; or several, in a structure.

    Raises:
        NotCompilable: It would be in the middle of what XLA compiles.
    """
    one = _OneReplica(context, exchanging=True) if _current.local else context
    if not all(each.shape.is_fully_defined() for each in tf.nest.flatten(value)):
        current.varying = True
    with current.having(own_code=False, exchanging=True):
        return one.all_reduce(tf.distribute.ReduceOp.SUM, value)


def exchange_here(value: tf.Tensor) -> tf.Tensor:
    """The same from wherever a replica's code is."""
    context: Any = tf.distribute.get_replica_context()
    total: tf.Tensor = exchange(getattr(context, "replica_context", context), value)
    return total


def have_met(tensor: Any) -> bool:
    """Whether a tensor is one that replicas have put together in this step."""
    return id(tensor) in _current.met


def once_for_all(context: Any, make: Callable[[], Any]) -> None:
    """Makes variables, outside of the graph and once; for code that all replicas come to.

    Args:
        context: The replica's context.
        make: Is called for one of them.
    """

    def make_outside(_: Any) -> None:
        with tf.init_scope():
            make()

    local = _current.local
    with _left(_OneReplica(context, exchanging=False)) if local else contextlib.nullcontext():
        context.merge_call(make_outside)


def summed_beforehand(
    variables: Sequence[Any], totals: Sequence[tf.Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Has variables with a value a replica be read without another sum, outside of the replicas.

    Args:
        variables: Of `synchronization="on_read"`, that nobody assigns in the block.
        totals: The sum over the replicas of each.
    """
    names = [id(variable) for variable in variables]
    return _current.having(totals=dict(zip(names, totals, strict=True)))


def noting(writes: Writes | None) -> contextlib.AbstractContextManager[None]:
    """Notes what is assigned in the block; None notes nothing, whatever stands around it."""
    return _current.having(writes=writes)


@contextlib.contextmanager
def keeping_former() -> Iterator[Former]:
    """Keeps what variables were before the block assigns them, in a graph.

    It sees the methods of variables, and not operations on their handles.
    """
    former = Former()
    with _current.having(former=former):
        yield former


def current_writes() -> Writes | None:
    """Where assignments of this thread are noted."""
    return _current.writes


@contextlib.contextmanager
def as_replica(
    replica: int, generator: Any, layers: Sequence[Any] = (), *, several: bool = True
) -> Iterator[None]:
    """Runs the step of a replica, with random numbers that are its own.

    Args:
        replica: Its number. The first draws what one device draws.
        generator: Keras' global `SeedGenerator`, which is another in each thread, as a replica
            is traced in one of its own; None leaves it alone.
        layers: Of the model that is called; what replicas keep there is kept apart where they meet.
        several: Whether there are other replicas.
    """
    before = private.global_generator()
    if generator is not None:
        private.set_global_generator(generator)
    apart = _tracing_anew() if several else contextlib.nullcontext()
    try:
        with _current.having(replica=replica, layers=layers, several=several, met={}), apart:
            yield
    finally:
        if generator is not None:
            private.set_global_generator(before)


@contextlib.contextmanager
def _tracing_anew() -> Iterator[None]:
    """Has each `tf.function` that a step calls be traced for this replica of this step.

    What is kept of another has another replica's copies in it, and what it assigns was noted there.
    """
    if tf.executing_eagerly():
        yield
        return
    # TensorFlow asks which functions choose the devices of operations; this one leaves them.
    graph: Any = tf.compat.v1.get_default_graph()
    with graph.device(lambda operation: operation.device), tf.variable_creator_scope(_refuse):
        yield


class MadeLate(ValueError):
    """A replica's code makes a variable in its graph."""


def _refuse(_: Any, **given: Any) -> Any:
    """Stands in for what makes variables, which in a replica's graph is too late."""
    raise MadeLate(
        f"Variable {given.get('name')!r} is made in a step of several replicas, which cannot make "
        "variables, and the step could not be traced beforehand to make it. Build the layer that "
        "it is of before: give a Sequential an Input, or call layer.build(input_shape), or make "
        "the variable in __init__."
    )


class SharedGenerator:
    """Keras' global `SeedGenerator`, as it is handed to the threads of the replicas.

    One that nobody has used yet is made beforehand, since a replica cannot make variables, and
    becomes the global one if a replica draws from it; else everything is left as it was, the
    state of Python's `random` too, from which its seed is taken.

    Made outside of any graph.

    Args:
        strategy: Whose replicas draw from it.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._spare: Any = None
        if private.global_generator() is not None:
            return
        self._before = random.getstate()
        with strategy.scope():
            self._spare = keras.random.SeedGenerator(name="seed_generator")
        self._after = random.getstate()
        random.setstate(self._before)
        self._spare.tfgpu_drawn = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[Any]:
        """Gives the generator; for the thread of the user, around what the replicas do."""
        generator = private.global_generator()
        if generator is not None or self._spare is None:
            yield generator
            return
        yield self._spare
        if self._spare.tfgpu_drawn:
            private.set_global_generator(self._spare)
            if random.getstate() == self._before:
                random.setstate(self._after)


# ---- what of Keras and TensorFlow asks where it is ------------------------------------------


def is_seed(variable: Any) -> bool:
    """Whether a TensorFlow variable is the state of a `keras.random.SeedGenerator`."""
    return bool(variable.name.rpartition("/")[2].startswith("seed_generator_state"))


def _shared_by_replicas(variable: Any) -> bool:
    """Whether several replicas are run, and `variable` is one for all of them."""
    return _current.several and not private.is_copy(variable)


def _install() -> None:
    """Makes methods of Keras and TensorFlow mind `_current`; outside of steps they stay as is."""
    update, assign = private.strategy_update.function, private.assign_distributed.function
    draw, read = private.draw_seed.function, private.read_variable.function
    assign_keras, add_copies = private.assign_value.function, private.sum_of_copies.function

    @functools.wraps(update)
    def local_update(
        self: Any, var: Any, fn: Any, args: Any = (), kwargs: Any = None, group: bool = True
    ) -> Any:
        if not _current.local:
            return update(self, var, fn, args, kwargs, group)
        if isinstance(var, private.DistributedVariable):
            var = private.own_copy(var)
        return fn(var, *args, **(kwargs or {}))

    @functools.wraps(assign)
    def noted_assign(self: Any, update_fn: Any, value: Any, **kwargs: Any) -> Any:
        if _current.writes is not None:
            value = _current.writes.note(self, value)
        elif not _current.local:
            return assign(self, update_fn, value, **kwargs)
        # Not by TensorFlow's rules, which add up new values where `state` adds what is new.
        return update_fn(private.own_copy(self), value, **kwargs)

    @functools.wraps(assign_keras)
    def unread_assign(self: Any, value: Any) -> None:
        variable = private.variable_value(self)
        if isinstance(variable, private.SyncOnReadVariable):
            # What TensorFlow returns of it, a sum over all replicas and between workers a
            # collective of 6 ms, nobody takes: for each variable of each metric that is reset.
            variable.assign(tf.cast(value, variable.dtype), read_value=False)
        else:
            assign_keras(self, value)

    @functools.wraps(add_copies)
    def total(self: Any) -> Any:
        found = _current.totals.get(id(self))
        return add_copies(self) if found is None else found

    @functools.wraps(draw)
    def own_draw(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _current.replica and not isinstance(
            private.variable_value(self.state), private.DistributedVariable
        ):
            # One made outside of the strategy's scope, of which the first replica turns the wheel.
            seed = self.state.value * 1
        else:
            seed = draw(self, *args, **kwargs)
        if hasattr(self, "tfgpu_drawn"):
            self.tfgpu_drawn = True
        if current.updating:
            return seed  # An update is the same on each replica.
        if _current.replica:
            seed = seed + tf.cast(tf.stack([_current.replica * _SPREAD, 0]), seed.dtype)
        if current.shared is not None:
            current.note("drawn", [seed])
        return seed

    def minding(assign: Any) -> Any:
        @functools.wraps(assign)
        def minded(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _shared_by_replicas(self) and not is_seed(self):
                raise ValueError(
                    f"Variable {self.name!r} is assigned in a step of several replicas and was "
                    "made outside of the strategy's scope, so that it has no copy for each. Make "
                    "it, and what holds it, under `strategy.scope()`."
                )
            if _current.former is not None:
                _current.former.note(self)
            return assign(self, *args, **kwargs)

        return minded

    @functools.wraps(read)
    def read_outside(self: Any, *args: Any, **kwargs: Any) -> Any:
        # XLA compiles for one device, and the variable is on one of them.
        if _current.graph is None or not _shared_by_replicas(self):
            return read(self, *args, **kwargs)
        with _current.graph.as_default():
            return read(self, *args, **kwargs)

    def meeting(together: Any) -> Any:
        @functools.wraps(together)
        def met(self: Any, *args: Any, **kwargs: Any) -> Any:
            with current.having(own_code=False):
                found = together(self, *args, **kwargs)
            if _current.several:
                known = {id(each): each for each in tf.nest.flatten(found)}
                _current.met = {**_current.met, **known}
            return found

        return met

    def apart(merge_call: Any) -> Any:
        @tf.autograph.experimental.do_not_convert
        @functools.wraps(merge_call)
        def merged(self: Any, *args: Any, **kwargs: Any) -> Any:
            # Another replica's thread goes on here, and runs the same code.
            state = PythonState(_current.layers) if _current.layers else None
            try:
                return merge_call(self, *args, **kwargs)
            finally:
                if state is not None:
                    state.put_back()

        return merged

    def of_present(reduce: Any) -> Any:
        @functools.wraps(reduce)
        def reduced(self: Any, reduce_op: Any, value: Any, options: Any = None) -> Any:
            rows = current.shared
            name = str(getattr(reduce_op, "name", reduce_op)).upper()
            # Decided by what is the same on each replica: that one is absent is not.
            if rows is None or current.exchanging or (name != "MEAN" and not rows.may_be_absent):
                return reduce(self, reduce_op, value, options)

            def own(leaf: Any) -> Any:
                leaf = tf.convert_to_tensor(leaf)
                if not rows.may_be_absent:
                    return leaf
                return tf.where(rows.present, leaf, tf.zeros_like(leaf))

            def mean(leaf: Any) -> Any:
                return leaf / tf.cast(rows.present_replicas, leaf.dtype)

            # Of a layer, say: a replica without rows of its own has nothing to add.
            add = tf.distribute.ReduceOp.SUM
            total = reduce(self, add, tf.nest.map_structure(own, value), options)
            return tf.nest.map_structure(mean, total) if name == "MEAN" else total

        return reduced

    replica: Any = tf.distribute.ReplicaContext
    with_merge = next(kind for kind in replica.__mro__ if "merge_call" in vars(kind))
    with_merge.merge_call = apart(with_merge.merge_call)
    replica.all_gather = meeting(replica.all_gather)
    replica.all_reduce = meeting(of_present(replica.all_reduce))
    kinds: Any = tf.distribute.MirroredStrategy.__mro__
    base = next(kind for kind in kinds if "num_replicas_in_sync" in vars(kind))
    number = base.num_replicas_in_sync.fget

    def replicas_of_own_code(self: Any) -> int:
        # Code for one device divides by it what each replica has of all rows already.
        return 1 if current.own_code else int(number(self))

    base.num_replicas_in_sync = property(replicas_of_own_code, doc=number.__doc__)
    # As a callback asks: `float(model.optimizer.learning_rate)`.
    private.DistributedVariable.__float__ = lambda self: float(self.numpy())
    private.DistributedVariable.__int__ = lambda self: int(self.numpy())
    for kind in (private.BaseResourceVariable, private.ResourceVariable):
        for name in ("assign", "assign_add", "assign_sub"):
            if name in vars(kind):
                setattr(kind, name, minding(vars(kind)[name]))
    private.read_variable.replace(read_outside)
    private.strategy_update.replace(local_update)
    private.assign_distributed.replace(noted_assign)
    private.draw_seed.replace(own_draw)
    private.assign_value.replace(unread_assign)
    private.sum_of_copies.replace(total)


_install()
