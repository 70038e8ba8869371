"""Train Keras 3 models on every GPU of a machine, through `tf.distribute`.

`import tfgpu` imports no TensorFlow, which takes seconds and reads its environment only once:
the public names below arrive on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfgpu.model import Model, Sequential, load_model

__version__ = "0.1.0"

__all__ = ["Model", "Sequential", "__version__", "load_model"]

_FROM_MODEL = ("Model", "Sequential", "load_model")


def __getattr__(name: str) -> Any:
    if name in _FROM_MODEL:
        import tfgpu.model

        return getattr(tfgpu.model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_MODEL})
