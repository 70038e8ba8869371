"""The graph of one training step for TensorBoard: flat, with all function calls inlined.

A traced training function is a loop around a body that calls functions (XLA's is one of them), each
of which TensorBoard would show as a node that does not open. Here the loop is left out and calls
are inlined, so that forward pass, gradients, all-reduce and update are side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from tfgpu.engine import keras_internals as private

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")


def step_graph(model: keras.Model) -> graph_pb2.GraphDef | None:
    """Returns the graph of one training step.

    Args:
        model: A `tfgpu.Model` that has trained.

    Returns:
        The graph, in which placeholders stand for what a step reads from outside. None when
        nothing was traced, such as under `run_eagerly`.
    """
    functions = [
        concrete
        for function in getattr(model.train_function, "traced", ())
        if isinstance(function, private.TracedFunction)
        for concrete in private.concrete_functions(function)
    ]
    if not functions:
        return None
    graph = functions[0].graph
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    loop = next((op for op in graph.get_operations() if op.type in _LOOPS), None)
    if loop is not None:
        graph = _body(library, loop.get_attr("body").name)
    flat = graph_pb2.GraphDef()
    _Inliner(library, flat).inline(graph, scope="", outside=None)
    _rename(flat, model.name, [layer.name for layer in private.flatten_layers(model)])
    return flat


def _rename(graph: graph_pb2.GraphDef, model: str, layers: Iterable[str]) -> None:
    """Removes loop and model from the names, and the numbers from the names of layers.

    Keras calls each layer once to build the model, so its name has a number here.
    """
    numbered = {f"{name}_1": name for name in layers}
    present = {part for node in graph.node for part in node.name.split("/")}
    numbered = {old: new for old, new in numbered.items() if old in present}

    def better(name: str) -> str:
        parts = [part for part in name.split("/") if part != "while"]
        if "forward" in parts:
            parts = [numbered.get(part, part) for part in parts]
            within = parts.index("forward") + 1
            if parts[within : within + 1] == [model]:
                del parts[within]
        return "/".join(parts)

    taken: set[str] = set()
    names = {}
    for node in graph.node:
        name = better(node.name)
        names[node.name] = node.name if name in taken or not name else name
        taken.add(names[node.name])
    for node in graph.node:
        node.name = names[node.name]
        for i, source in enumerate(node.input):
            control = "^" if source.startswith("^") else ""
            producer, colon, output = source.removeprefix("^").partition(":")
            node.input[i] = f"{control}{names[producer]}{colon}{output}"


def _body(library: Mapping[str, Any], name: str) -> tf.Graph:
    return private.graph_of_function(
        library[name], propagate_device_spec=True, include_library_functions=True
    )


class _Inliner:
    """Copies nodes into one graph, with the nodes of called functions instead of the calls."""

    def __init__(self, library: Mapping[str, Any], flat: graph_pb2.GraphDef):
        self._library = library
        self._flat = flat
        self._taken: set[str] = set()

    def inline(self, graph: tf.Graph, *, scope: str, outside: list[str] | None) -> list[str]:
        """Copies a function's graph.

        Args:
            graph: Of the function.
            scope: The prefix of the names of its nodes.
            outside: The tensors that its inputs are, or None to show them as placeholders.

        Returns:
            Its outputs, named as nodes name their inputs.
        """
        inner: dict[str, str] = {}  # Tensors of `graph`, as they are named in the flat graph.
        names: dict[str, str] = {}  # Its nodes.
        if outside is not None:
            inner |= {t.name: o for t, o in zip(graph.inputs, outside, strict=True)}
        arguments = {t.op.name for t in graph.inputs}
        for op in graph.get_operations():
            if op.name in arguments and outside is not None:
                continue
            called = self._called(op)
            if called is not None:
                inputs = [inner[t.name] for t in op.inputs]
                under = op.name.rpartition("/")[0]
                outputs = self.inline(called, scope=_join(scope, under), outside=inputs)
                inner |= {t.name: o for t, o in zip(op.outputs, outputs, strict=True)}
                continue
            node = self._flat.node.add()
            node.CopyFrom(op.node_def)
            under = "arguments" if op.name in arguments else scope
            node.name = names[op.name] = self._free(_join(under, op.name))
            del node.input[:]
            node.input.extend(inner[t.name] for t in op.inputs)
            node.input.extend(
                f"^{names[before.name]}" for before in op.control_inputs if before.name in names
            )
            for key in [key for key in node.attr if key.startswith("_")]:
                if key != "_output_shapes":
                    del node.attr[key]
            shapes = node.attr["_output_shapes"].list
            del shapes.shape[:]
            shapes.shape.extend(t.shape.as_proto() for t in op.outputs)
            for i, tensor in enumerate(op.outputs):
                inner[tensor.name] = f"{node.name}:{i}" if i else node.name
        return [inner[t.name] for t in graph.outputs] if graph.outputs else []

    def _called(self, op: tf.Operation) -> tf.Graph | None:
        if op.type not in _CALLS:
            return None
        name = op.get_attr("f").name
        return _body(self._library, name) if name in self._library else None

    def _free(self, name: str) -> str:
        free, number = name, 0
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
