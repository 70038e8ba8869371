"""A program in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path


def python(program, *, path=None, **variables):
    """Runs a program in a fresh interpreter, without what this one has set."""
    ours = ("TF_", "KERAS_BACKEND", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ours)
    } | variables
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
        timeout=120,
    )
