"""Private names of other libraries, checked when they are taken.

Any version of a library may drop such a name, or change what it takes. The check tells so at the
import, in one line, where a hook that is no longer called would be found out much later.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType
from typing import Any

from tfgpu.errors import VersionError

_TITLES = {"keras": "Keras", "tensorflow": "TensorFlow", "keras_tuner": "KerasTuner"}
_MISSING: Any = object()


def versions() -> str:
    """The libraries in question that are imported, with their versions."""
    return " with ".join(
        f"{title} {sys.modules[name].__version__}"
        for name, title in _TITLES.items()
        if name in sys.modules
    )


def require(owner: Any, name: str, *parameters: str) -> Any:
    """Returns what a class or module has under `name`.

    Args:
        owner: The class or module.
        name: Of an attribute.
        *parameters: The names that the parameters of the attribute, a callable, begin with.

    Raises:
        VersionError: There is no such attribute, or it takes others.
    """
    found = getattr(owner, name, _MISSING)
    if found is _MISSING:
        raise VersionError(f"tfgpu needs {_path(owner, name)}, which {versions()} does not have")
    if parameters:
        given = tuple(inspect.signature(found).parameters)[: len(parameters)]
        if given != parameters:
            raise VersionError(
                f"tfgpu needs {_path(owner, name)} to begin with the parameters "
                f"{', '.join(parameters)}; those of {versions()} are {', '.join(given)}"
            )
    return found


def require_use(owner: Any, method: str, *names: str) -> None:
    """Checks that a method reads, sets or calls an attribute of each of `names`.

    Attributes of instances stand nowhere else, and a hook that nobody calls hooks nothing.

    Args:
        owner: The class or module of the method.
        method: Of a method or property, the class's own or an inherited one, or of a function.
        *names: Of attributes.

    Raises:
        VersionError: It does not use one of them.
    """
    require(owner, method)
    used: set[str] = set()
    for kind in getattr(owner, "__mro__", (owner,)):
        found: Any = vars(kind).get(method)
        function: Any = found.fget if isinstance(found, property) else found
        function = inspect.unwrap(function)
        used |= _names(function.__code__) if hasattr(function, "__code__") else set()
    for name in names:
        if name not in used:
            raise VersionError(
                f"tfgpu needs {_path(owner, method)} to use {name}; that of {versions()} does not"
            )


def _names(code: CodeType) -> set[str]:
    """The attributes and globals that code uses, that of functions in it among it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _path(owner: Any, name: str) -> str:
    return ".".join(filter(None, [getattr(owner, "__module__", ""), owner.__name__, name]))


class Attribute:
    """An attribute of the instances of a class: called with one, it returns the value.

    In the body of a class derived from that one, it is the same attribute under another name.

    Args:
        owner: The class.
        name: Of the attribute.
        used_in: The method that has to use it, where it is none of the class itself.
    """

    def __init__(self, owner: type, name: str, *, used_in: str = "__init__"):
        if not hasattr(owner, name):
            require_use(owner, used_in, name)
        self.name = name

    def __call__(self, instance: Any) -> Any:
        return getattr(instance, self.name)

    def set(self, instance: Any, value: Any) -> None:
        """Gives the attribute another value."""
        setattr(instance, self.name, value)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else getattr(instance, self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(instance, self.name, value)


class Method:
    """A method of a class, or function of a module, that is called on an instance or replaced.

    Args:
        owner: The class or module.
        name: Of the method.
        *parameters: See `require`.
    """

    def __init__(self, owner: Any, name: str, *parameters: str):
        require(owner, name, *parameters)
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
