"""Train Keras 3 models on every GPU of a machine, through `tf.distribute`.

`import tfgpu` imports no TensorFlow, which takes seconds and reads its environment only once:
the public names below arrive on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
    from tfgpu.engine.model import Model, Sequential, load_model
    from tfgpu.tensorboard import TensorBoard

__version__ = "0.1.0"

__all__ = ["BackupAndRestore", "Model", "Sequential", "TensorBoard", "__version__", "load_model"]

_MODULES = {
    "BackupAndRestore": "tfgpu.checkpoint.backup_and_restore",
    "Model": "tfgpu.engine.model",
    "Sequential": "tfgpu.engine.model",
    "TensorBoard": "tfgpu.tensorboard",
    "load_model": "tfgpu.engine.model",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
