"""What docs/troubleshooting.md shows is what the commands say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODES = {"request": 2, "data": 3, "work": 5}
# Those that import TensorFlow.
SLOW = ("--batch_size=100", "--devices=GPU", "--freeze", "folder:", "1e30", "--resume")


def shown():
    """(what goes wrong, command, line) of each command in a console block."""
    kind = None
    for part in re.split(r"^## ", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.M):
        kind = part.split(maxsplit=2)[1].strip("()") if part.startswith("The ") else None
        for block in re.findall(r"^```console\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            for command, line in re.findall(r"^\$ (.*)\n(.*)\n", block, re.MULTILINE):
                yield kind, command, line


def cases():
    for kind, command, line in shown():
        slow = any(word in command for word in SLOW)
        yield pytest.param(
            kind, command, line, marks=[pytest.mark.slow] if slow else [], id=command
        )


@pytest.mark.parametrize(("kind", "command", "line"), list(cases()))
def test_a_command_says_what_is_shown(tmp_path, kind, command, line):
    program, *words = shlex.split(command)
    assert program == "tfgpu"
    done = subprocess.run(
        [sys.executable, "-m", "tfgpu", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CONFIG": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == CODES[kind]
    said = done.stderr.splitlines()[-1]
    pattern = ".*".join(map(re.escape, line.split("...")))
    # A message may end by naming a page.
    assert re.fullmatch(rf"{pattern}(; see docs/[\w#./-]+)?", said)


def test_every_kind_is_shown():
    assert {kind for kind, _, _ in shown()} == set(CODES)
