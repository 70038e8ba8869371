"""What XLA compiles, and which layer it cannot."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private


class Uncompilable(Exception):
    """XLA has no kernel for an operation; says which, and of which layer."""


def complaint(error: tf.errors.OpError, layers: dict[str, str]) -> str | None:
    """What XLA's compiler could not compile, of an error that a step ended with.

    Args:
        error: Of the step.
        layers: The names of the model's layers, by the scope of the graph they run in.

    Returns:
        The layer and the compiler's words; None when the error is another.
    """
    if not _COMPILER.search(error.message):
        return None
    lines = (_NODES.sub("", line).strip().rstrip(".:;,") for line in error.message.splitlines())
    reason = next(
        (line for line in lines if re.search("XLA|constant|[Uu]nsupported", line)),
        "its compiler's words are in the error that led to this one",
    )
    nodes = re.findall(r"{{node ([^}]+)}}", error.message)
    places = (_layer_of(node, layers) for node in nodes)
    where = next((place for place in places if place.startswith("Layer")), "The step")
    return f"{where} cannot be compiled by XLA ({reason})"


# Parts of the messages of XLA's compiler, of TensorFlow 2.19 to 2.21.
_COMPILER = re.compile(
    r"_XlaMustCompile=true|XLA compilation|XLA_[CG]PU_JIT|compile-time constant|tf2xla"
)
_NODES = re.compile(r"\[\[.*?\]\]|{{node [^}]*}}")


def compiled(function: Callable[[], Any], *, layers: Callable[[], dict[str, str]]) -> Any:
    """Runs `function` compiled by XLA, as one operation of the graph that is being made.

    Args:
        function: Takes nothing, but may use any tensor and variable around it. Returns any
            structure; its tensors come out of the compiled function with the mask and the
            logits that Keras pins to them.
        layers: Gives the names of the model's layers, by the scope of the graph they run in.

    Raises:
        Uncompilable: XLA has no kernel for an operation of it.
    """
    result: Any = None
    pinned: list[tuple[int, str]] = []

    def flat() -> list[Any]:
        nonlocal result
        result = function()
        pinned.clear()
        tensors = [leaf for leaf in tree.flatten(result) if _is_tensor(leaf)]
        extra = []
        for position, tensor in enumerate(tensors):
            for name in private.PINNED:
                value = getattr(tensor, name, None)
                if isinstance(value, tf.Tensor):
                    pinned.append((position, name))
                    extra.append(value)
        return [*tensors, *extra]

    concrete = tf.function(flat, jit_compile=True, autograph=False)
    check(concrete.get_concrete_function().graph, layers=layers)
    values = concrete()
    tensors = iter(values)
    structure = tree.map_structure(lambda x: next(tensors) if _is_tensor(x) else x, result)
    leaves = [leaf for leaf in tree.flatten(structure) if _is_tensor(leaf)]
    for (position, name), value in zip(pinned, tensors, strict=True):
        setattr(leaves[position], name, value)
    return structure


def check(graph: Any, *, layers: Callable[[], dict[str, str]]) -> None:
    """Looks for what XLA has no kernel for.

    Args:
        graph: Of a function that was traced, with all that it calls.
        layers: See `compiled`.

    Raises:
        Uncompilable: There is such an operation.
    """
    for kind, name in _operations(graph):
        if not _has_kernel(kind):
            where = _layer_of(name, layers())
            raise Uncompilable(f"{where} uses {kind}, which XLA cannot compile")


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices))


def _operations(graph: Any) -> Iterator[tuple[str, str]]:
    """Type and name of the operations of a graph and of the functions that it calls."""
    nested = False
    for operation in graph.get_operations():
        if any(output.consumers() for output in operation.outputs) or not operation.outputs:
            yield operation.type, operation.name
            nested = nested or operation.type in _CALLS
    if nested:
        for function in graph.as_graph_def().library.function:
            for node in function.node_def:
                yield node.op, node.name


_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_CALLS |= {"If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase"}
# Inputs and outputs, which are no work.
_ENDS = {"Placeholder", "_Arg", "_Retval", "NoOp"}


@functools.cache
def _has_kernel(kind: str) -> bool:
    """Whether XLA, on any device, has a kernel for a type of operation."""
    if kind in _CALLS or kind in _ENDS:
        return True
    _register_kernels()
    registered = private.registered_kernels(kind).kernel
    # A function of the graph, called by its name, has no kernels at all.
    return not registered or any("XLA" in kernel.device_type for kernel in registered)


@functools.cache
def _register_kernels() -> None:
    """XLA registers its kernels when it first compiles something."""
    with tf.init_scope():
        tf.function(lambda: tf.constant(0.0) + 1.0, jit_compile=True, autograph=False)()


def _layer_of(name: str, layers: dict[str, str]) -> str:
    """Which layer an operation belongs to, by the scopes in its name."""
    scopes = name.split("/")[:-1]
    if "compile_loss" in scopes[:-1]:
        return f"The loss {scopes[scopes.index('compile_loss') + 1]!r}"
    for scope in reversed(scopes):
        # A layer that is called again runs in a scope with one more number.
        for candidate in (scope, re.sub(r"_\d+$", "", scope)):
            if candidate in layers:
                return f"Layer {layers[candidate]!r}"
    return f"The operation {name!r}"
