"""What is another inside a `with` block: a thread's state, methods of an object."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class ThreadState(threading.local):
    """Attributes of which each thread has its own values; at first the class's."""

    @contextlib.contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """Gives attributes other values inside the block."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)


@contextlib.contextmanager
def in_place_of(owner: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Inside the block an object has these functions in the place of its methods."""
    # Past `__setattr__`, with which Keras looks for layers and variables.
    own = {name: vars(owner)[name] for name in functions if name in vars(owner)}
    vars(owner).update(functions)
    try:
        yield
    finally:
        for name in functions:
            vars(owner).pop(name, None)
        vars(owner).update(own)
