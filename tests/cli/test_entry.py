"""Properties of the entry: exit codes, one-line errors, and that help imports nothing heavy."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfgpu
from tfgpu import errors
from tfgpu.cli import entry

ROOT = Path(tfgpu.__file__).parents[1]


def python(*args, stdout=subprocess.PIPE, **env):
    return subprocess.run(
        [sys.executable, *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


def outcome(capsys, failure):
    """Returns exit code and standard error of a command that raises `failure`."""

    def main(argv):
        raise failure

    with pytest.raises(SystemExit) as stop:
        entry.run(main, [])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, None), (0, 0), (1, 1)])
def test_exits_with_what_the_command_returns(returned, code):
    with pytest.raises(SystemExit) as stop:
        entry.run(lambda argv: returned, [])
    assert stop.value.code == code


def test_the_command_gets_the_arguments_without_the_programs_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--a", "b"])
    seen = []
    with pytest.raises(SystemExit):
        entry.run(seen.extend)
    assert seen == ["--a", "b"]


WORK = "docs/troubleshooting.md#the-work-exit-code-5"


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (errors.RequestError("--epochs=0: no"), 2, "--epochs=0: no"),
        (errors.DataError("no data"), 3, "no data; see docs/data.md"),
        (errors.ModelFileError("no model"), 4, "no model; see docs/checkpoints.md"),
        (errors.RequestError("no", page="train#the-models"), 2, "no; see docs/train.md#the-models"),
        (errors.DataError("no data", page=""), 3, "no data"),
        (errors.WorkError("not finite"), 5, f"not finite; see {WORK}"),
        (errors.MeetingError("no"), 2, "no; see docs/several_machines.md"),
        (errors.Interrupted(15), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (errors.WorkError("two\n  lines\n"), 5, f"two lines; see {WORK}"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(capsys, failure, code, line):
    assert outcome(capsys, failure) == (code, f"tfgpu: {line}\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_names_the_file(capsys, number):
    code, said = outcome(capsys, OSError(number, os.strerror(number), "runs/a/log.txt"))
    assert code == 5
    assert said.startswith("tfgpu: ") and said.count("\n") == 1
    assert "runs/a/log.txt" in said


def test_a_full_disk_need_not_know_the_file(capsys):
    code, said = outcome(capsys, OSError(errno.ENOSPC, "No space left on device"))
    assert code == 5
    assert "None" not in said


def test_running_out_of_memory_is_one_line(capsys):
    code, said = outcome(capsys, MemoryError())
    assert code == 5
    assert "--batch_size" in said


@pytest.mark.parametrize("failure", [ValueError("a bug"), FileNotFoundError(2, "gone", "x")])
def test_a_bug_keeps_its_traceback(failure):
    def main(argv):
        raise failure

    with pytest.raises(type(failure)):
        entry.run(main, [])


def test_debugging_shows_the_traceback_of_an_error(capsys, monkeypatch):
    monkeypatch.setenv("TFGPU_DEBUG", "1")
    code, said = outcome(capsys, errors.DataError("no data"))
    assert code == 3
    assert "Traceback" in said
    assert said.endswith("tfgpu: no data; see docs/data.md\n")


@pytest.mark.parametrize(
    "args",
    [
        ("-m", "tfgpu", "--help"),
        ("-m", "tfgpu", "--version"),
        ("-m", "tfgpu", "train", "--help"),
        ("-m", "tfgpu", "train", "--version"),
        ("-m", "tfgpu.train", "--help"),
        ("-m", "tfgpu.train", "--version"),
    ],
    ids=" ".join,
)
def test_help_and_version_exit_0(args):
    done = python(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tfgpu" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "train --help",
        "train --version",
        "evaluate --help",
        "predict --help",
        "export --help",
        "bench --help",
        "report --help",
        "runs --help",
        "launch --help",
        "doctor --help",
    ],
)
def test_help_and_version_import_nothing_heavy(command):
    done = python(
        "-c",
        "import atexit, sys; from tfgpu.cli import entry\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "entry.main(sys.argv[1:])",
        *command.split(),
    )
    assert done.returncode == 0
    heavy = {"tensorflow", "keras", "numpy", "tensorflow_datasets", "sklearn", "rich"}
    heavy |= {"matplotlib", "jinja2"}
    assert heavy.isdisjoint(done.stderr.split())


def test_importing_the_package_imports_no_tensorflow():
    done = python("-c", "import sys, tfgpu; dir(tfgpu); print(*sys.modules)")
    assert {"tensorflow", "keras", "numpy"}.isdisjoint(done.stdout.split())


def test_the_public_names_are_listed():
    assert {"Model", "Sequential", "load_model", "__version__"} <= set(dir(tfgpu))


def test_a_name_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = tfgpu.Modle


def test_both_ways_to_start_a_command_say_the_same():
    as_module = python("-m", "tfgpu.train", "--epochs=0")
    as_command = python("-m", "tfgpu", "train", "--epochs=0")
    assert as_module.returncode == as_command.returncode == 2
    assert as_module.stderr == as_command.stderr
    assert as_module.stderr.startswith("tfgpu: --epochs=0: ")
    assert as_module.stderr.endswith("; see docs/train.md\n")
    assert as_module.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["nonsense"], "'nonsense' is not a command"),
        (["--epochs=3"], "a command comes first"),
        ([], "a command is missing"),
    ],
)
def test_a_wrong_command_is_refused(capsys, argv, said):
    with pytest.raises(SystemExit) as stop:
        entry.main(argv)
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("tfgpu: ") and line.count("\n") == 1
    assert said in line and "train" in line


@pytest.mark.skipif(sys.platform == "win32", reason="a process there gets no signal")
@pytest.mark.parametrize(
    "started",
    ["sys.argv = ['bin/tfgpu']", "__spec__ = ModuleSpec('tfgpu.train.__main__', None)"],
    ids=["script", "module"],
)
def test_ctrl_c_within_the_imports_is_one_line(started):
    code = (
        "import os, signal, sys\nfrom importlib.machinery import ModuleSpec\n"
        f"{started}\nimport tfgpu.cli\nos.kill(os.getpid(), signal.SIGINT)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (130, "tfgpu: stopped by SIGINT\n")


def test_whoever_imports_the_library_keeps_the_interrupt_of_python():
    code = "import signal, tfgpu.cli; print(signal.getsignal(2) is signal.default_int_handler)"
    assert python("-c", code).stdout == "True\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_may_be_closed(closed):
    command = f'exec "{sys.executable}" -m tfgpu train --help {closed}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently there")
def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = python("-m", "tfgpu", "train", "--help", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_not_a_success():
    with open("/dev/full", "w") as full:
        done = python("-m", "tfgpu", "train", "--help", stdout=full)
    assert done.returncode == 5
    assert done.stderr.startswith("tfgpu: ") and done.stderr.count("\n") == 1
