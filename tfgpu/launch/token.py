"""The token that workers of one training know each other by, where something else starts them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tfgpu.errors import RequestError
from tfgpu.launch.worker import TOKEN

TOKEN_FILE = f"{TOKEN}_FILE"


def read(variables: Mapping[str, str], *, how: str) -> str:
    """Reads the token from the environment, or from the file that it names.

    Args:
        variables: The environment.
        how: How to provide it, for the message.

    Raises:
        RequestError: There is none, or others can read the file.
    """
    token = variables.get(TOKEN, "").strip()
    if token:
        return token
    path = variables.get(TOKEN_FILE, "")
    if not path:
        raise RequestError(
            f"{TOKEN} is not set: workers know each other by it, so that no stranger joins; {how}"
        )
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(4096).strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise RequestError(f"{TOKEN_FILE}={path}: cannot be read ({why}); {how}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RequestError(
            f"{TOKEN_FILE}={path}: others may read it; chmod 600 {Path(path).name}, and put a new "
            "token into it"
        )
    if not token:
        raise RequestError(f"{TOKEN_FILE}={path}: is empty; {how}")
    return token
