"""Finds the function that builds a model: one of tfgpu's own, or the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfgpu.cli import import_path
from tfgpu.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import keras

Builders = Mapping[str, "str | Callable[..., keras.Model]"]
"""Builders by name: functions, or where one lies, as "package.module:function"."""

CLASSIFIERS: Builders = {
    "lenet": "tfgpu.models.lenet:lenet",
    "resnet50": "tfgpu.models.resnet:resnet50",
}
"""Of images with classes."""


def find_builder(
    name: str | None, known: Builders = CLASSIFIERS, *, task: str = ""
) -> Callable[..., keras.Model]:
    """Finds the function that builds the model.

    Args:
        name: One of `known`, or "package.module:function" for the user's own, looked for among
            what is installed, then in the current folder. None for the first of `known`.
        known: Builders by name.
        task: Whose models these are, for messages.

    Returns:
        A function of what the task gives and perhaps `width` and `depth`.

    Raises:
        RequestError: There is no such model, module or function, or the module fails.
    """
    if name is None:
        name = next(iter(known))
    if ":" in name:
        return _callable(name)
    if name not in known:
        of = f" of --task={task}" if task else ""
        raise RequestError(
            f"--model={name} is none of {', '.join(known)}{of}{did_you_mean(name, known)}; "
            "write package.module:function for a builder of your own"
        )
    found = known[name]
    return found if callable(found) else _callable(found, asked=name)


def _callable(name: str, *, asked: str | None = None) -> Callable[..., Any]:
    builder = find_object(name, flag="model", asked=asked, kind="function")
    assert callable(builder)
    return builder


def find_object(name: str, *, flag: str, asked: str | None = None, kind: str = "object") -> Any:
    """Finds what a module of tfgpu or of the user's has under a name, and imports the module.

    Args:
        name: "package.module:NAME", looked for among what is installed, then in the current folder.
        flag: That named it, for messages.
        asked: The value of the flag, where it is another.
        kind: "function" for what can be called, else "object".

    Raises:
        RequestError: There is no such module or name, or the module fails.
    """
    module_name, _, object_name = name.partition(":")
    shown = f"--{flag}={asked or name}"
    if asked is None:
        import_path.find_in_current_directory()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RequestError(
                f"{shown}: there is no module {error.name!r} here or installed"
            ) from None
        raise RequestError(f"{shown}: {module_name} needs {error.name!r}") from error
    except Exception as error:
        raise RequestError(
            f"{shown}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, object_name, None)
    if found is None or (kind == "function" and not callable(found)):
        names = [
            key
            for key, value in vars(module).items()
            if not key.startswith("__") and (kind != "function" or callable(value))
        ]
        raise RequestError(
            f"{shown}: {module_name} has no {kind} {object_name!r}"
            f"{did_you_mean(object_name, names)}{_hidden(module)}"
        )
    return found


def _hidden(module: ModuleType) -> str:
    """Says that another module of the same name lies in the current folder, if one does."""
    file = getattr(module, "__file__", None)
    here = Path.cwd().joinpath(*module.__name__.split("."))
    for near in (here.with_suffix(".py"), here / "__init__.py"):
        if near.is_file() and file is not None and not near.samefile(file):
            return f"; it is the installed {file}, which hides {near}: rename yours"
    return ""
