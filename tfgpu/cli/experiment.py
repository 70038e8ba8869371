"""Settings from files: an experiment's, an earlier run's, and other Python files of the user's."""

import json
import traceback
from pathlib import Path
from typing import Any

from tfgpu.cli import import_path
from tfgpu.errors import RequestError


def read(path: Path) -> dict[str, Any]:
    """Returns the settings of an experiment file.

    Raises:
        RequestError: The file cannot be read, run or understood; names the file, and the line
            where there is one.
    """
    if path.suffix not in (".py", ".json"):
        inside = path / "config.json"
        near = f" (did you mean {str(inside)!r}?)" if inside.is_file() else ""
        raise RequestError(
            f"--experiment={path}: must be a .py file that defines config() -> dict, or an "
            f"earlier run's config.json{near}"
        )
    if path.suffix == ".json":
        return _from_json(path, _read_text(path, flag="experiment"))
    return _from_python(path)


def _read_text(path: Path, *, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"--{flag}={path}: {error.strerror or error}; name a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"--{flag}={path}: is not UTF-8 text: {error}") from error


def _from_json(path: Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise RequestError(f"{path}: is nested too deeply for a file of settings") from error
    except ValueError as error:  # A number of thousands of digits.
        raise RequestError(f"{path}: holds a number that is too long: {error}") from error
    if not isinstance(settings, dict):
        raise RequestError(
            f"--experiment={path}: must hold an object, as a run's config.json does, not a "
            f"{type(settings).__name__}"
        )
    # The file of an earlier run names that run's own directory, which is taken.
    settings.pop("run_dir", None)
    settings.pop("resume", None)
    return settings


def read_python(path: Path, *, flag: str) -> dict[str, Any]:
    """Runs a Python file of the user's.

    Args:
        path: The file.
        flag: The one that named it, for the message.

    Returns:
        What it defines, by name.

    Raises:
        RequestError: It cannot be read or run; names the line where there is one.
    """
    if path.suffix != ".py":
        raise RequestError(f"--{flag}={path}: must be a .py file")
    text = _read_text(path, flag=flag)
    import_path.find_in_current_directory()  # For what the file imports.
    namespace: dict[str, Any] = {"__name__": f"tfgpu_{flag}", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), namespace)
    # Whatever the file raises is the file's mistake, an early exit included.
    except (Exception, SystemExit) as error:
        what = error.msg if isinstance(error, SyntaxError) else error
        raise RequestError(
            f"{path}{line_of(error, path)}: {type(error).__name__}: {what}"
        ) from error
    return namespace


def _from_python(path: Path) -> dict[str, Any]:
    config = read_python(path, flag="experiment").get("config")
    try:
        settings = config() if callable(config) else None
    except (Exception, SystemExit) as error:
        raise RequestError(
            f"{path}{line_of(error, path)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(settings, dict):
        raise RequestError(
            f"--experiment={path}: must define a function config() that returns a dict of settings"
        )
    return settings


def line_of(error: BaseException, path: Path) -> str:
    """Returns ":LINE", the last line of `path` that led to the error, or ""."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""
