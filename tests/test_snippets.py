"""Every command and every piece of code of the documents: it can be read, and behind the marker
`slow` it runs.

The blocks of a page run in order in a folder of their own, so that a later one finds what earlier
ones made. `document_setup.py` says what lies there before, and which commands are not run, each
with the reason.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import document_setup as setup
import pytest
from document_blocks import PAGES, ROOT, blocks, calls, commands, prose, with_flags

from tfgpu.cli import flags
from tfgpu.cli.entry import COMMANDS

# Seconds that the shell has for a block.
LIMIT = 900
# What no command may find that the tests have set.
OURS = ("TF_", "KERAS", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER", "TFGPU_", "TFDS_")


def _id(path):
    return path.name


def shell_commands():
    """(page, command) of all blocks for a shell."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for command in commands(block.text):
                yield page.name, command


# ---- what can be seen without running anything ------------------------------------------------


def test_every_block_is_run_or_left_out_by_name():
    assert len(PAGES) > 25
    for page in PAGES:
        for block in blocks(page):
            # test_troubleshooting.py runs what a console shows; `text` is no code.
            console = block.language == "console" and page.stem == "troubleshooting"
            known = block.language in ("bash", "python", "text") or console
            assert known, f"{block.page}:{block.line}"
    left_out = [each for each in shell_commands() if setup.skipped(*each)]
    run = [each for each in shell_commands() if not setup.skipped(*each)]
    assert len(run) > 2 * len(left_out)
    assert {name for _, command in run for name, _ in calls(command)} == set(COMMANDS)


def test_what_is_left_out_or_changed_is_there():
    there = list(shell_commands())
    for page, pattern, reason in setup.SKIPPED:
        assert reason
        assert any(page in ("", name) and re.match(pattern, each) for name, each in there), pattern
    for page, old, _, reason in setup.CHANGED:
        assert reason
        assert any(page == name and old in command for name, command in there), old
    for page, part, _ in setup.NAMED:
        assert any(page == name and part in command for name, command in there), part


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_are_read(page):
    for block in blocks(page, "bash"):
        for command in commands(block.text):
            for name, arguments in calls(command):
                if name in COMMANDS:
                    _read(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_within_the_text_have_their_flags(page):
    # Words such as N stand for values, and a flag may stand for itself.
    for span in re.findall(r"`((?:srun |python -m )?tfgpu[. ][a-z][^`]*)`", prose(page)):
        for name, arguments in calls(span):
            if name in COMMANDS:
                named = {word.partition("=")[0] for word in arguments if word.startswith("--")}
                assert named <= _flags(name) | {"--"}, span


@functools.cache
def _flags(name):
    rows = [row for section in flags.described(name).values() for row in section]
    return {head.partition("=")[0] for head, _, _ in rows}


def _read(name, arguments):
    given = flags.given(arguments, name)
    # A file of settings is of somebody's own.
    if "experiment" not in given and not {"--help", "--version"} & set(arguments):
        flags.settings_of(name).from_json(given)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_python_is_read(page):
    for block in blocks(page, "python"):
        compile(block.text, page.name, "exec")


def test_extras_that_are_installed_exist():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    declared = set(re.findall(r'^    "(\w+)": ', text, re.MULTILINE))
    for page in PAGES:
        for names in re.findall(r"pip install[^`\n]*?\[([\w,]+)\]", page.read_text("utf-8")):
            assert set(names.split(",")) <= declared, page


# ---- all of it, run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with the programs that the pages call, of this environment."""
    place = tmp_path_factory.mktemp("programs")
    for name in ("python", "python3"):
        _program(place / name, f'exec "{sys.executable}" "$@"')
    _program(place / "tfgpu", f'exec "{sys.executable}" -m tfgpu "$@"')
    return place


def _program(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders with sets of TFDS, by the sets."""
    made = {}

    def get(names):
        if names not in made:
            made[names] = tmp_path_factory.mktemp("tfds")
            for name in names:
                setup.a_set_of_tfds(name, made[names])
        return made[names]

    return get


@pytest.fixture(scope="module")
def shell(programs):
    """Runs commands in a folder, and returns what they say."""

    def run(place, text, **variables):
        ours = {name: each for name, each in os.environ.items() if not name.startswith(OURS)}
        path = os.pathsep.join([str(programs), os.path.dirname(sys.executable), ours["PATH"]])
        ours |= {"PYTHONPATH": str(ROOT), "PATH": path} | variables
        script = "set -euo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\"' ERR\n" + text
        with subprocess.Popen(
            ["bash", "-c", script],
            cwd=place,
            env=ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{text}\n{said}"
        return said

    return run


@pytest.fixture(scope="module")
def finished(shell, prepared, tmp_path_factory):
    """Finished runs by the name that pages give them; each is trained once."""
    place = tmp_path_factory.mktemp("finished")
    setup.photos(place / "photos", 20)

    def get(name):
        run = place / "runs" / name
        if not run.exists():
            command = f"tfgpu train {setup.TRAININGS[name]} --run_dir=runs/{name}"
            names = tuple(setup.datasets_of(command))
            shell(place, command, TFDS_DATA_DIR=str(prepared(names)))
        return run

    return get


@pytest.mark.slow
# Keras says so of any tf.data.Dataset to which `fit` was not told shuffle=False.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored")
@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_a_page_runs(page, tmp_path, monkeypatch, capfd, request, shell, prepared, finished):
    name = page.name
    bash = [each for block in blocks(page, "bash") for each in commands(block.text)]
    bash = [each for each in bash if not setup.skipped(name, each)]
    python = blocks(page, "python")
    if not bash and not python:
        pytest.skip("has no code, or none that runs here")
    # A checkout in which the package is installed.
    for folder in ("experiments", ".ci"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for here in (".venv/bin", "low/bin"):
        (tmp_path / here).mkdir(parents=True)
        for program in request.getfixturevalue("programs").iterdir():
            (tmp_path / here / program.name).symlink_to(program)
    setup.FILES.get(name, lambda place: None)(tmp_path)
    for run in setup.RUNS.get(name, []):
        shutil.copytree(finished(run), tmp_path / "runs" / run)
    data_dir = str(prepared(tuple(setup.datasets_of("\n".join(bash)))))
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.chdir(tmp_path)

    names = None
    for block in blocks(page, "bash", "python"):
        if block.language == "bash":
            _run_block(name, block, tmp_path, shell, data_dir)
        elif block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        else:
            if names is None:
                request.getfixturevalue("tensorflow")  # With two devices.
                names = {"__name__": "__main__"} | setup.python_names(name)
            exec(compile(block.text, f"{name}:{block.line}", "exec"), names)


def _run_block(page, block, place, shell, data_dir):
    waiting = []
    for command in commands(block.text):
        if setup.skipped(page, command):
            continue
        if command.startswith("tensorboard "):
            _serve(command, place)
            continue
        if "runs/NAME" in command and not (place / "runs" / "NAME").is_dir():
            pattern = setup.run_named(page, command)
            command = command.replace("runs/NAME", f'"$(ls -td runs/{pattern}/ | head -1)"')
        command = setup.changed(page, command)
        waiting.append(with_flags(command, setup.flags_of(page)))
    if waiting:
        shell(place, "\n".join(waiting), TFDS_DATA_DIR=data_dir)


def _serve(command, place):
    """Starts TensorBoard, asks it for its runs, and stops it."""
    words = [sys.executable, "-m", "tensorboard.main", *command.split()[1:], "--port=0"]
    with open(place / "served.txt", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(words, cwd=place, stdout=said, stderr=said)
        try:
            end = time.monotonic() + 120
            while not (
                found := re.search(r"http://localhost:\d+/", (place / "served.txt").read_text())
            ):
                assert process.poll() is None and time.monotonic() < end, said.name
                time.sleep(0.5)
            runs = ""
            while "train" not in runs and time.monotonic() < end:  # It reads them one by one.
                with urllib.request.urlopen(f"{found[0]}data/runs", timeout=30) as answer:
                    runs = answer.read().decode()
                time.sleep(0.5)
            assert "train" in runs
        finally:
            process.terminate()
            process.wait()
