"""What all commands share: entry, flags and settings, console, start-up, interrupts."""

import os
import sys

from tfgpu.cli import early_interrupts, import_path

# Before a command imports any dependency: `python -m tfgpu.train`, or the console script.
_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
_script = os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))[0]
if _spec is not None and _spec.name.partition(".")[0] == "tfgpu":
    early_interrupts.begin()
    import_path.leave_current_directory()
elif _spec is None and _script == "tfgpu":
    early_interrupts.begin()
