"""One function a runtime: loads a file as its users would, and gives a function to call.

Each function takes uint8 images (n, height, width, channels) and returns float32 probabilities
(n, classes), both NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfgpu.artifacts.trained_run import load_safely
from tfgpu.export.inference_model import INPUT, OUTPUT

Predict = Callable[[np.ndarray], np.ndarray]


def load_keras(path: Path, threads: int) -> Predict:
    """Loads a `.keras` file with Keras."""
    return keras_function(load_safely(path))


def keras_function(model: keras.Model) -> Predict:
    """A compiled call of a Keras model."""
    call = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
    return lambda images: call(tf.constant(images)).numpy()


def load_saved_model(path: Path, threads: int) -> Predict:
    """Loads a SavedModel with TensorFlow."""
    loaded = tf.saved_model.load(path)

    def predict(images: np.ndarray) -> np.ndarray:
        # Looked up in each call: a signature does not keep alive what it was loaded with.
        return loaded.signatures["serving_default"](**{INPUT: tf.constant(images)})[OUTPUT].numpy()

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
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def load_litert(path: Path, threads: int) -> Predict:
    """Loads a LiteRT file with ai-edge-litert, on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
    return lambda images: runner(**{INPUT: images})[OUTPUT]


LOADERS = {
    "keras": load_keras,
    "saved_model": load_saved_model,
    "onnx": load_onnx,
    "litert": load_litert,
    "litert_int8": load_litert,
}
"""What loads a file, by format."""
