"""What all commands share: entry, flags and settings, console, start-up, interrupts."""

import sys

from tfgpu.cli import import_path

# Before a command imports any dependency.
_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
if _spec is not None and _spec.name.partition(".")[0] == "tfgpu":
    import_path.leave_current_directory()
