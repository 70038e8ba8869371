"""Runs a `.keras` file under the Keras backend that KERAS_BACKEND names; needs Keras alone.

    KERAS_BACKEND=jax python experiments/evidence_backend.py MODEL.keras EXAMPLES.npz OUT.npz

EXAMPLES.npz holds "x", what the model takes; OUT.npz gets "probabilities" and "versions". It is run
by interpreters that have no tfgpu and no TensorFlow.
"""

import importlib.metadata
import json
import sys

import numpy as np


def main(model: str, examples: str, out: str) -> None:
    """Loads, predicts, writes."""
    import keras

    loaded = keras.saving.load_model(model, compile=False)
    backend = keras.backend.backend()
    predicted = loaded.predict(np.load(examples)["x"], batch_size=64, verbose=0)
    names = ("keras", {"torch": "torch", "jax": "jax", "tensorflow": "tensorflow"}[backend])
    versions = {name: importlib.metadata.version(name) for name in names}
    np.savez(out, probabilities=np.asarray(predicted), versions=json.dumps(versions))


if __name__ == "__main__":
    main(*sys.argv[1:])
