"""Where modules of the user's are looked for: in the current directory, after what is installed."""

import os
import sys


def leave_current_directory() -> None:
    """Takes the directory that `python -m` put first off the import path.

    A file there that is named like a dependency would be imported in its place, wherever one
    happens to stand. Where tfgpu itself lies there, as in a checkout, it goes last.
    """
    here = _current_directory()
    # -P and PYTHONSAFEPATH have had nothing put there.
    if sys.flags.safe_path or not sys.path or sys.path[0] not in ("", here):
        return
    del sys.path[0]
    if here is not None and os.path.realpath(here) == os.path.realpath(
        os.path.join(__file__, "..", "..", "..")
    ):
        find_in_current_directory()


def find_in_current_directory() -> None:
    """Has modules of the current directory found where no installed one has their name."""
    here = _current_directory()
    if here is not None and here not in sys.path:
        sys.path.append(here)


def _current_directory() -> str | None:
    """Its path; None where it has been removed, which whoever needs it will find."""
    try:
        return os.getcwd()
    except OSError:
        return None
