"""Which packages a format needs beyond tfgpu's own; no TensorFlow here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from tfgpu.errors import RequestError

NEEDS = {
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "litert_float16": ("ai_edge_litert",),
    "litert_int8": ("ai_edge_litert",),
}
"""Modules by format: what writes it, and the runtime that it is compared in."""


def check(formats: Iterable[str]) -> None:
    """Refuses formats whose packages are not installed.

    Args:
        formats: Names of formats.

    Raises:
        RequestError: Names the extra to install.
    """
    for kind in formats:
        for module in NEEDS.get(kind, ()):
            if importlib.util.find_spec(module) is None:
                raise RequestError(
                    f"--formats={kind} needs {module}, which is not installed: "
                    "pip install 'tfgpu[export]', or name other formats"
                )
