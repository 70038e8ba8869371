"""Finds the function that builds a model: one of tfgpu's own, or the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tfgpu.cli import import_path
from tfgpu.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import keras

MODELS = ("lenet",)


def find_builder(name: str) -> Callable[..., keras.Model]:
    """Finds the function that builds the model.

    Args:
        name: One of `MODELS`, or "package.module:function" for the user's own, looked for
            among what is installed, then in the current folder.

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
    else:
        import_path.find_in_current_directory()
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
        near = did_you_mean(function_name, functions)
        raise RequestError(
            f"--model={name}: {module_name} has no function {function_name!r}{near}"
            f"{_hidden(module)}"
        )
    return builder


def _hidden(module: ModuleType) -> str:
    """Says that another module of the same name lies in the current folder, if one does."""
    file = getattr(module, "__file__", None)
    here = Path.cwd().joinpath(*module.__name__.split("."))
    for near in (here.with_suffix(".py"), here / "__init__.py"):
        if near.is_file() and file is not None and not near.samefile(file):
            return f"; it is the installed {file}, which hides {near}: rename yours"
    return ""
