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
    "airbench": "tfgpu.models.airbench:airbench",
    "resnet20": "tfgpu.models.resnet:resnet20",
    "wide_resnet": "tfgpu.models.wide_resnet:wide_resnet",
    "resnet50": "tfgpu.models.resnet:resnet50",
}
"""Of images with classes."""


def find_builder(
    name: str | None, known: Builders = CLASSIFIERS, *, task: str = ""
) -> Callable[..., keras.Model]:
    """Finds the function that builds the model.

    Args:
        name: One of `known`, of images with classes also a network of `keras.applications`, or
            "package.module:function" for the user's own, looked for among what is installed, then
            in the current folder. None for the first of `known`.
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
        return _of_keras(name, known, task)
    found = known[name]
    return found if callable(found) else _callable(found, asked=name)


def _of_keras(name: str, known: Builders, task: str) -> Callable[..., keras.Model]:
    """A network of `keras.applications`, which are classifiers of images.

    Raises:
        RequestError: There is none of that name, or the task is another.
    """
    of = f" of --task={task}" if task else ""
    among = {**known}
    if known is CLASSIFIERS:
        # Here, because it imports Keras.
        from tfgpu.models import applications

        networks = applications.names()
        short = name.removeprefix(applications.PREFIX)
        if short in networks:
            return applications.application(short)
        if short != name:
            raise RequestError(
                f"--model={name}: keras.applications has no {short}"
                f"{did_you_mean(short, networks)}; it has {', '.join(networks)}"
            )
        among |= dict.fromkeys(networks, "")
        of += ", nor a network of keras.applications such as EfficientNetB0"
    raise RequestError(
        f"--model={name} is none of {', '.join(known)}{of}{did_you_mean(name, among)}; "
        "write package.module:function for a builder of your own"
    )


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
