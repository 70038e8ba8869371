"""What can be learnt from data, one module a task; `tfgpu.tasks.task` says how to add one."""

from __future__ import annotations

import pkgutil

_NO_TASKS = ("task", "loading", "options", "parts")


def names() -> tuple[str, ...]:
    """The names of tfgpu's own tasks: its modules, none of which is imported."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in _NO_TASKS))
