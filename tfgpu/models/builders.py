"""Finds the function that builds a model: one of tfgpu's own, or the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tfgpu.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import keras

MODELS = ("lenet",)


def find_builder(name: str) -> Callable[..., keras.Model]:
    """Finds the function that builds the model.

    Args:
        name: One of `MODELS`, or "package.module:function" for the user's own, looked for
            in the current folder too.

    Returns:
        A function of `image_shape`, `num_classes` and perhaps `width` and `depth`.

    Raises:
        RequestError: There is no such model, module or function, or the module fails.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        if name not in MODELS:
            raise RequestError(
                f"--model={name} is none of {', '.join(MODELS)}{did_you_mean(name, MODELS)}; "
                "write package.module:function for a builder of your own"
            )
        module_name, function_name = f"tfgpu.models.{name}", name
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RequestError(
                f"--model={name}: there is no module {error.name!r} here or installed"
            ) from None
        raise RequestError(f"--model={name}: {module_name} needs {error.name!r}") from error
    except Exception as error:
        raise RequestError(
            f"--model={name}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    builder = getattr(module, function_name, None)
    if not callable(builder):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise RequestError(
            f"--model={name}: {module_name} has no function {function_name!r}"
            f"{did_you_mean(function_name, functions)}"
        )
    return builder
