"""Where every command starts and ends: dispatch, and errors turned into exit codes.

`tfgpu COMMAND ...` and `python -m tfgpu.COMMAND ...` are the same: both end in `run`.
"""

import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from tfgpu.cli import early_interrupts, flags
from tfgpu.errors import (
    DISK_FULL,
    Error,
    RequestError,
    VersionWarning,
    WorkError,
    did_you_mean,
    see,
)

# Each command is the module of that name in this package.
COMMANDS = {
    "train": "train a model",
    "launch": "start the workers of a training on one machine or several",
    "tune": "search for better settings",
    "evaluate": "measure a finished run's model on a data set",
    "predict": "label images",
    "runs": "list runs, and say in which settings they differ",
    "report": "write one HTML file about a run, or about several side by side",
    "export": "write the model for other runtimes, and prove that nothing got lost",
    "bench": "measure where the time goes, and what would save some of it",
    "doctor": "say why training does not start, or does not use the GPU",
}


_format_warning = warnings.formatwarning


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What Python prints of a warning: for a user of the command, without a place in the code."""
    if issubclass(category, VersionWarning):
        return f"tfgpu: warning: {message}\n"
    return _format_warning(message, category, filename, lineno, line)


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits the process with the code its outcome calls for.

    An `errors.Error` ends as one line on standard error, which says where to read more: the page
    that it names, or for a wrong request that of the command. Any other exception is a bug: it
    keeps its traceback and exits 1. `TFGPU_DEBUG=1` shows the traceback of every error.

    Args:
        main: Takes the arguments without the program's name; returns an exit code, or None for 0.
        argv: The arguments; those of the process by default.
    """
    warnings.formatwarning = _one_line
    _open_standard_streams()
    # The names of files need not be UTF-8, nor what a terminal can write.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        early_interrupts.end()
        try:
            code: object = main(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:  # --help and --version
            code = stop.code
        # Here rather than at the interpreter's end, where a closed pipe can no longer be caught.
        sys.stdout.flush()
    except Error as error:
        page = _command(main, argv) if isinstance(error, RequestError) else ""
        _fail(str(error), error.exit_code, more=error.see or see(page))
    except KeyboardInterrupt:
        _fail("stopped by SIGINT", 130)
    except BrokenPipeError:
        if os.environ.get("TFGPU_DEBUG") == "1":
            traceback.print_exc()
        _drop_stdout()
        sys.exit(141)  # 128 + SIGPIPE: what a program that does not catch it ends with
    except MemoryError:
        _fail_at_work("out of memory; lower --batch_size, or choose --input=streaming")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _fail_at_work(
            f"{error.strerror}{where}; free some space, or choose another place with --run_dir"
        )
    raise SystemExit(code)


def _open_standard_streams() -> None:
    """Opens those that the process was started without, as by `>&-` of a shell.

    Python has None for them, and the next file that is opened would get their number and what a
    library writes to it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)  # Taken since.
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free, which this is.
        setattr(sys, name, open(os.devnull, mode))


def _command(main: Callable[..., object], argv: Sequence[str] | None) -> str:
    """The command that was asked for, by either of its names; "" for none."""
    if main is _dispatch:
        name = next(iter(sys.argv[1:] if argv is None else argv), "")
    else:  # `python -m tfgpu.train` calls its module `__main__`.
        spec = getattr(sys.modules.get(main.__module__), "__spec__", None)
        name = spec.name.split(".")[1] if spec and spec.name.startswith("tfgpu.") else ""
    return name if name in COMMANDS else ""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script `tfgpu`."""
    run(_dispatch, argv)


def _dispatch(argv: list[str]) -> int | None:
    if not argv:
        raise RequestError(f"a command is missing: {_known()}")
    command, rest = argv[0], argv[1:]
    if command in ("--help", "-help", "-h"):
        print(_help_text())
        return 0
    if command in ("--version", "-version"):
        print(flags.version_text())
        return 0
    if command.startswith("-"):
        raise RequestError(f"{command}: a command comes first: {_known()}")
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise RequestError(f"{command!r} is not a command{near}: {_known()}")
    return importlib.import_module(f"tfgpu.{command}.__main__").main(rest)


def _known() -> str:
    return f"the commands are {', '.join(COMMANDS)}; `tfgpu --help` says more"


def _help_text() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: tfgpu COMMAND [--flag=value ...]",
            "       python -m tfgpu.COMMAND [--flag=value ...]",
            "",
            "Commands; `tfgpu COMMAND --help` gives the flags of each:",
            *(f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()),
            "",
            "`tfgpu --version` prints the versions of tfgpu, TensorFlow and Keras.",
            "",
            "Environment:",
            flags.ENVIRONMENT,
            "",
            "Exit codes:",
            flags.EXIT_CODES,
        ]
    )


def _fail(message: str, code: int, *, more: str = "") -> NoReturn:
    if os.environ.get("TFGPU_DEBUG") == "1":
        traceback.print_exc()
    _flush_quietly()
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"tfgpu: {line}{more}", file=sys.stderr)
    sys.exit(code)


def _fail_at_work(message: str) -> NoReturn:
    """What no part of tfgpu has noticed before."""
    _fail(message, WorkError.exit_code, more=WorkError().see)


def _flush_quietly() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Points standard output at nothing, so that the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
