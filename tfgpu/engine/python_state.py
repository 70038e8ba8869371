"""What Python keeps while replicas run: attributes of layers and flags of variables, kept apart.

Replicas are threads of which one goes on at a time. Another one does where they meet, and runs the
same code on the same objects: what it sets there, such as `net.trainable = False` or `self.n`, is
its own. So each begins with what was there before the step, and finds what it left when it comes
back from a meeting.

That is so for the attributes of layers, the model's among them, and of plain objects that they
hold, up to `_DEEPEST`; for what is in lists, dicts, sets and deques in them; and for the flag
`trainable` of variables. It is not for metrics, losses of Keras, optimizers and callbacks, for
generators of random numbers and other objects of libraries, and for what code finds elsewhere:
globals, closures, attributes of classes.
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private

_DEEPEST = 3
"""How many plain objects deep, each held by the one before."""

_TENSORS = (tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)
# Of the engine and of Keras, what replicas are to share.
_SHARED = (keras.Metric, keras.optimizers.Optimizer, keras.callbacks.Callback, tf.Variable)
# Objects of these are no plain ones.
_LIBRARIES = {"keras", "tensorflow", "tfgpu", "numpy", *sys.stdlib_module_names} - {"types"}

_Fill = Callable[[Any, Any], Any]
# By the class whose methods are Python's: Keras' lists and dicts ask whether they may change.
_FILLS: dict[type, _Fill] = {
    list: lambda value, content: list.__setitem__(value, slice(None), content),
    dict: dict.update,
    set: set.update,
    collections.OrderedDict: collections.OrderedDict.update,
    collections.deque: collections.deque.extend,
}


class PythonState:
    """What Python keeps of layers now, to be put back.

    Args:
        layers: The layers, with those in them.
    """

    def __init__(self, layers: Iterable[Any]):
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._contents: list[tuple[Any, type, Any]] = []
        self._flags: list[tuple[Any, bool]] = []
        self._seen: set[int] = set()
        self._unbuilt: list[tuple[Any, bool]] = []
        layers = list(layers)
        self._seen |= {id(layer) for layer in layers}
        for layer in layers:
            self._take_object(layer, _DEEPEST)

    def put_back(self) -> None:
        """Puts everything back, but for layers that have been built meanwhile."""
        built, theirs = self._built_meanwhile()
        for owner, before in self._attributes:
            if id(owner) not in built:
                _put_attributes(vars(owner), before)
        for value, kind, content in self._contents:
            if id(value) not in theirs and not _is_same(value, content):
                _fill(value, kind, content)
        self._put_flags()

    def put_back_values(self) -> None:
        """Puts tensors, numbers and flags back, and leaves what has been made: layers, variables.

        Of layers that have been built meanwhile it leaves numbers too, which may be of `build`.
        """
        built, theirs = self._built_meanwhile()
        for owner, before in self._attributes:
            now = vars(owner)
            for name in [name for name, value in now.items() if before.get(name) is not value]:
                of_build = id(owner) in built and not _has(now[name], _TENSORS)
                if not of_build and _is_value(now[name]) and not name.startswith("tfgpu_"):
                    _put(now, name, before)
        for value, kind, content in self._contents:
            of_build = id(value) in theirs and not _has(value, _TENSORS)
            if not of_build and not _is_same(value, content) and _is_value(value):
                _fill(value, kind, content)
        self._put_flags()
        for layer, trainable in built.values():
            private.is_trainable.set(layer, trainable)
            for variable in layer.variables:
                variable.trainable = private.variable_value(variable).trainable  # At first.

    def _built_meanwhile(self) -> tuple[dict[int, tuple[Any, bool]], set[int]]:
        """Those layers, with whether they were to be trained, and what is in their attributes."""
        built = {id(layer): (layer, flag) for layer, flag in self._unbuilt if layer.built}
        return built, {id(each) for layer, _ in built.values() for each in vars(layer).values()}

    def _put_flags(self) -> None:
        for variable, trainable in self._flags:
            if variable.trainable != trainable:
                variable.trainable = trainable

    def _take_object(self, owner: Any, deepest: int) -> None:
        attributes = dict(vars(owner))
        self._attributes.append((owner, attributes))
        is_layer = isinstance(owner, keras.Layer)
        if is_layer and not owner.built:
            self._unbuilt.append((owner, private.is_trainable(owner)))
        structure = _structure() if is_layer else frozenset()
        for name, value in attributes.items():
            kind = _kind_of(type(value))
            if kind is None or name.startswith("tfgpu_"):
                continue
            # What Keras keeps for itself is looked into for variables alone.
            of_variables = kind is list and value and isinstance(value[0], keras.Variable)
            if name not in structure or of_variables:
                self._take(value, kind, deepest)

    def _take(self, value: Any, kind: Any, deepest: int) -> None:
        if kind is None or id(value) in self._seen:
            return
        if kind is tuple:
            for each in value:
                self._take(each, _kind_of(type(each)), deepest)
            return
        self._seen.add(id(value))
        if kind is keras.Variable:
            self._flags.append((value, value.trainable))
        elif kind in _FILLS:
            content = dict(value) if isinstance(value, dict) else list(value)
            self._contents.append((value, kind, content))
            for each in content.values() if isinstance(content, dict) else content:
                self._take(each, _kind_of(type(each)), deepest)
        elif kind is keras.Layer:
            self._take_object(value, deepest)
        elif deepest and hasattr(value, "__dict__"):
            self._take_object(value, deepest - 1)


_ATOMS = {type(None), bool, int, float, str, bytes, *_TENSORS}


_kinds: dict[type, Any] = {}


def _kind_of(kind: type) -> Any:
    """What a class is one of: a container, `keras.Variable`, `keras.Layer`, or object, a plain one.

    None is anything else, which is not looked into.
    """
    if kind not in _kinds:
        _kinds[kind] = _find_kind(kind)
    return _kinds[kind]


def _find_kind(kind: type) -> Any:
    if kind in _ATOMS or issubclass(kind, (type, *_SHARED)):
        return None
    for each in (keras.Variable, tuple, keras.Layer):
        if issubclass(kind, each):
            return each
    if (container := next((each for each in kind.__mro__ if each in _FILLS), None)) is not None:
        return container
    return None if kind.__module__.partition(".")[0] in _LIBRARIES else object


@functools.cache
def _structure() -> frozenset[str]:
    """The attributes that each layer has, but for its losses."""
    return frozenset(vars(keras.Layer(name="any"))) - {private.own_losses.name}


def _put_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [*now, *before]:
        changed = name not in now or name not in before or now[name] is not before[name]
        if changed and not name.startswith("tfgpu_"):
            _put(now, name, before)


def _put(now: dict[str, Any], name: str, before: dict[str, Any]) -> None:
    if name in before:
        now[name] = before[name]
    else:
        now.pop(name, None)


def _fill(value: Any, kind: Any, content: Any) -> None:
    kind.clear(value)
    _FILLS[kind](value, content)


def _is_same(value: Any, content: Any) -> bool:
    """Whether a container has what it had, in that order; sets have none."""
    if len(value) != len(content):
        return False
    if isinstance(value, set):
        return value == set(content)
    pairs = zip(value, content, strict=True)
    if not isinstance(value, dict):
        return all(one is other for one, other in pairs)
    return all(one == other and value[one] is content[other] for one, other in pairs)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | collections.deque):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _has(value: Any, kinds: Any) -> bool:
    return any(isinstance(leaf, kinds) for leaf in _leaves(value))


def _is_value(value: Any) -> bool:
    """Whether it is made of tensors, numbers and texts alone."""
    return all(type(leaf) in _ATOMS or isinstance(leaf, _TENSORS) for leaf in _leaves(value))
