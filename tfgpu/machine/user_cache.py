"""Where tfgpu keeps what is known of a machine from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path


def directory() -> Path | None:
    """`tfgpu` in the user's cache directory (`XDG_CACHE_HOME`, by default `~/.cache`).

    Returns:
        The path, which need not exist; None for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfgpu"
    except RuntimeError:
        return None
