"""Whether a data set may be prepared on the disk, which a dry run may not."""

from __future__ import annotations

import contextlib
import contextvars
import tempfile
from collections.abc import Iterator

_instead: contextvars.ContextVar[str | None] = contextvars.ContextVar("instead", default=None)


@contextlib.contextmanager
def in_passing(wanted: bool = True) -> Iterator[None]:
    """Has nothing prepared that stays: small sets go to a folder that is removed at the end.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tfgpu-dry-run-") as folder:
        token = _instead.set(folder)
        try:
            yield
        finally:
            _instead.reset(token)


def instead() -> str | None:
    """The folder that is removed at the end, inside `in_passing`; else None."""
    return _instead.get()
