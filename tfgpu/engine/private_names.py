"""Private names of other libraries, checked when they are taken.

Any version of a library may drop such a name, or change what it takes. The check tells so at the
import, in one line, where a hook that is no longer called would be found out much later.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from tfgpu.errors import VersionError

NEWEST = {"keras": (3, 15), "tensorflow": (2, 21)}
"""The newest versions that the tests have passed on; setup.py has them as bounds."""

_TITLES = {"keras": "Keras", "tensorflow": "TensorFlow", "keras_tuner": "KerasTuner"}


def versions() -> str:
    """The libraries that are imported, with their versions."""
    known = [(sys.modules[name], title) for name, title in _TITLES.items() if name in sys.modules]
    return " with ".join(f"{title} {module.__version__}" for module, title in known)


def newer_than_tried() -> str:
    """What to say of libraries that are newer than `NEWEST`; "" where none is."""
    newer = []
    for name, newest in NEWEST.items():
        version = sys.modules[name].__version__
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) > newest:
            newer.append(f"{_TITLES[name]} {version} (tried up to {newest[0]}.{newest[1]})")
    if not newer:
        return ""
    return (
        f"{' and '.join(newer)} {'is' if len(newer) == 1 else 'are'} newer than this version of "
        "tfgpu was tried with: all private names that it needs were found, and no test has run"
    )


def require(owner: Any, name: str, *parameters: str, called_by: str | None = None) -> Any:
    """Returns what a class or module has under `name`.

    Args:
        owner: The class or module.
        name: Of an attribute; one that instances alone have is known by the methods that use it.
        *parameters: The names with which the parameters of a callable begin.
        called_by: A method of the class that has to call it.

    Returns:
        The attribute; None for that of instances.

    Raises:
        VersionError: It is not there, takes something else or is not called.
    """
    path = ".".join(filter(None, [getattr(owner, "__module__", ""), owner.__name__, name]))
    found: Any = getattr(owner, name, None)
    if found is None and (parameters or name not in _used(owner)):
        raise VersionError(f"tfgpu needs {path}, which {versions()} does not have")
    if parameters:
        given = tuple(inspect.signature(found).parameters)[: len(parameters)]
        if given != parameters:
            raise VersionError(
                f"tfgpu needs {path} to begin with the parameters {', '.join(parameters)}; "
                f"those of {versions()} are {', '.join(given)}"
            )
    if called_by is not None and name not in _used(owner, called_by):
        raise VersionError(f"tfgpu needs {path}, which `{called_by}` of {versions()} does not call")
    return found


@functools.cache
def _used(owner: Any, method: str | None = None) -> set[str]:
    """The names in the code of all methods of a class or functions of a module, or of one."""
    used: set[str] = set()
    for kind in getattr(owner, "__mro__", (owner,)):
        for name in vars(kind) if method is None else (method,):
            function: Any = vars(kind).get(name)
            function = inspect.unwrap(getattr(function, "fget", None) or function)
            if isinstance(function, FunctionType):
                used |= _names(function.__code__)
    return used


def _names(code: CodeType) -> set[str]:
    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *texts}.union(*inner)


def calling(name: str) -> Callable[..., Any]:
    """A method that calls another one of its object: a private hook that has a public name."""
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


class Attribute:
    """An attribute of the instances of a class: called with one, it returns the value.

    In the body of a class derived from that one, it is the same attribute under another name.

    Args:
        owner: The class.
        name: Of the attribute.
    """

    def __init__(self, owner: Any, name: str):
        require(owner, name)
        self.name = name

    def __call__(self, instance: Any) -> Any:
        return getattr(instance, self.name)

    def set(self, instance: Any, value: Any) -> None:
        """Gives the attribute another value."""
        setattr(instance, self.name, value)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else self(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self.set(instance, value)


class Method:
    """A method of a class, or function of a module, to be called on an instance or replaced.

    Args:
        owner: The class or module.
        name: Of the method.
        *parameters: See `require`.
        called_by: See `require`.
    """

    def __init__(self, owner: Any, name: str, *parameters: str, called_by: str | None = None):
        require(owner, name, *parameters, called_by=called_by)
        self._owner = owner
        self.name = name

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(instance, self.name)(*args, **kwargs)

    @property
    def function(self) -> Any:
        """What the class or module has now."""
        return getattr(self._owner, self.name)

    def replace(self, function: Any) -> None:
        """Puts a function in the place of the class's or module's."""
        setattr(self._owner, self.name, function)
