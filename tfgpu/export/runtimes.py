"""One function a runtime: loads a file as its users would, and gives a function to call.

Each function takes raw inputs by name, (n, ...) NumPy arrays, and returns outputs by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.artifacts.trained_run import load_safely

Predict = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def load_keras(path: Path, threads: int) -> Predict:
    """Loads a `.keras` file with Keras."""
    model = load_safely(path)
    names = [each.name for each in model.inputs]
    output = "" if isinstance(model.output, dict) else model.output_names[0]

    def call(*raw: tf.Tensor) -> Mapping[str, tf.Tensor]:
        outputs = model(raw[0] if len(raw) == 1 else list(raw), training=False)
        return {output: outputs} if output else outputs

    function = compiled(call)
    return lambda inputs: function(*(inputs[name] for name in names))


def compiled(call: Callable[..., Mapping[str, tf.Tensor]]) -> Callable[..., dict[str, np.ndarray]]:
    """A function of tensors as one of arrays, run as a graph."""
    function = tf.function(call, reduce_retracing=True)

    def run(*arrays: Any) -> dict[str, np.ndarray]:
        outputs = function(*tf.nest.map_structure(tf.constant, arrays))
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def load_saved_model(path: Path, threads: int) -> Predict:
    """Loads a SavedModel with TensorFlow."""
    loaded = tf.saved_model.load(path)

    def predict(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Looked up in each call: a signature does not keep alive what it was loaded with.
        signature = loaded.signatures["serving_default"]
        outputs = signature(**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return predict


def load_onnx(path: Path, threads: int) -> Predict:
    """Loads an ONNX file with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path, sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def load_litert(path: Path, threads: int) -> Predict:
    """Loads a LiteRT file with ai-edge-litert, on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
    return lambda inputs: runner(**inputs)


LOADERS = {
    "keras": load_keras,
    "saved_model": load_saved_model,
    "onnx": load_onnx,
    "litert": load_litert,
    "litert_float16": load_litert,
    "litert_int8": load_litert,
}
"""What loads a file, by format."""
