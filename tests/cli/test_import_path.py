"""What lies in the current directory is imported when it is asked for, and never in passing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfgpu
from tfgpu.cli import experiment, import_path
from tfgpu.errors import RequestError
from tfgpu.models.builders import find_builder

ROOT = Path(tfgpu.__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory of a user, and an import path that is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", ["tfgpu", "tfgpu.train", "tfgpu.doctor"])
@pytest.mark.parametrize("name", ["absl", "numpy", "rich", "tensorflow", "keras"])
def test_a_file_named_like_a_dependency_is_not_imported(tmp_path, command, name):
    (tmp_path / f"{name}.py").write_text("print('mine'); raise SystemExit(9)")
    arguments = ["train", "--help"] if command == "tfgpu" else ["--help"]
    done = run("-m", command, *arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "mine" not in done.stdout


def test_a_training_imports_no_dependency_from_where_it_is_started(tmp_path):
    for name in ("numpy", "keras", "rich", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    flags = ["--dataset=synthetic:8x8x1:2", "--batch_size=1000000"]
    done = run("-m", "tfgpu.train", *flags, cwd=tmp_path)
    # The size is refused once the data are open, and nothing of the directory has run.
    assert (done.returncode, "larger than the training set" in done.stderr) == (2, True)


def test_the_console_script_has_nothing_of_the_directory_on_its_path(tmp_path):
    code = (
        "import json, sys; from tfgpu.cli import entry; sys.path.pop(0)\n"
        "try: entry.main(['--version'])\n"
        "except SystemExit: print(json.dumps(sys.path))"
    )
    done = run("-c", code, cwd=tmp_path)
    assert str(tmp_path) not in json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="a directory in use stays there")
def test_the_current_directory_may_have_been_removed(tmp_path):
    command = f'mkdir gone; cd gone; rmdir ../gone; exec "{sys.executable}" -m tfgpu.train --help'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_current_directory_comes_last(here):
    import_path.find_in_current_directory()
    import_path.find_in_current_directory()
    assert sys.path[-1] == str(here) and sys.path.count(str(here)) == 1


def test_a_builder_of_the_users_is_imported(here):
    (here / "import_path_mine.py").write_text("def build(): pass\n")
    assert find_builder("import_path_mine:build").__name__ == "build"


def test_a_builder_that_an_installed_module_hides_is_named(here):
    (here / "absl.py").write_text("def build(): pass\n")
    with pytest.raises(RequestError, match=r"absl has no function 'build'.*hides .*absl\.py"):
        find_builder("absl:build")


def test_a_builtin_model_adds_nothing_to_the_path(tmp_path):
    code = (
        "import sys; sys.path.remove(''); from tfgpu.models.builders import find_builder\n"
        "find_builder('lenet'); print(sys.path)"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and str(tmp_path) not in done.stdout


def test_an_experiment_may_import_what_lies_beside_it(here):
    (here / "import_path_sizes.py").write_text("BATCH = 32\n")
    path = here / "experiment.py"
    path.write_text(
        "from import_path_sizes import BATCH\ndef config(): return {'batch_size': BATCH}"
    )
    assert experiment.read(path) == {"batch_size": 32}
