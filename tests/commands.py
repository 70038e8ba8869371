"""Commands in this process, as a user starts them."""

import sys

import pytest

from tfgpu.cli import entry


def command(main, *argv):
    """Runs a command in this process; returns its exit code."""
    before = list(sys.path)
    try:
        with pytest.raises(SystemExit) as stop:
            entry.run(main, [str(each) for each in argv])
    finally:
        sys.path[:] = before
        if "keras" in sys.modules:
            # The command's own, which a process has once; here tests go on.
            sys.modules["keras"].config.set_dtype_policy("float32")
    return stop.value.code or 0


def refusal(capsys, main, *argv):
    """Runs a command that fails; returns its exit code and the one line it says."""
    capsys.readouterr()
    code = command(main, *argv)
    said = capsys.readouterr().err
    assert said.startswith("tfgpu: ") and said.count("\n") == 1, said
    return code, said
