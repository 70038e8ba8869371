"""Which packages a format needs beyond tfgpu's own; no TensorFlow here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable

from tfgpu.errors import RequestError

NEEDS = {
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "litert_float16": ("ai_edge_litert",),
    "litert_int8": ("ai_edge_litert",),
}
"""Modules by format: what writes it, and the runtime that it is compared in."""

KERAS = {"litert": (3, 13), "litert_float16": (3, 13), "litert_int8": (3, 13)}
"""The oldest Keras whose `export` writes a format."""


def check(formats: Iterable[str]) -> None:
    """Refuses formats whose packages are not installed.

    Args:
        formats: Names of formats.

    Raises:
        RequestError: Names the extra to install.
    """
    keras = importlib.metadata.version("keras")
    for kind in formats:
        needed = KERAS.get(kind, ())
        if tuple(map(int, re.findall(r"\d+", keras)[:2])) < needed:
            raise RequestError(
                f"--formats={kind} needs Keras {'.'.join(map(str, needed))} or newer, and {keras} "
                "is installed: name other formats"
            )
        for module in NEEDS.get(kind, ()):
            if importlib.util.find_spec(module) is None:
                raise RequestError(
                    f"--formats={kind} needs {module}, which is not installed: "
                    "pip install 'tfgpu[export]', or name other formats"
                )
