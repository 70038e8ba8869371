"""What comes before TensorFlow: its environment variables and its import."""

import os
import warnings
from pathlib import Path

import pytest
from fresh_process import python

from tfgpu.cli import flags, startup
from tfgpu.errors import RequestError


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    startup.prepare_environment()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(RequestError, match="KERAS_BACKEND is 'jax'"):
        startup.prepare_environment()


def test_a_setting_that_comes_too_late_is_told(tensorflow, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    with pytest.warns(RuntimeWarning, match="TF_ENABLE_ONEDNN_OPTS"):
        startup.prepare_environment()


def test_a_second_time_is_silent():
    startup.prepare_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        startup.prepare_environment()


def test_verbosity_leaves_the_log_level_alone(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    startup.prepare_environment(verbosity=1)
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ


def test_a_failing_import_says_what_was_said(tmp_path):
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    fake.joinpath("__init__.py").write_text(
        "import os\nos.write(2, b'libcudart: no such file\\n')\nraise ImportError('broken\\nwheel')"
    )
    done = python(
        """
import os, sys
sys.path.insert(1, os.getcwd())
from tfgpu import errors
from tfgpu.cli import startup
try:
    startup.import_tensorflow()
except errors.WorkError as error:
    print(error)
os.write(2, b"given back")
""",
        path=tmp_path,
    )
    assert done.stdout.startswith(
        "TensorFlow cannot be imported: ImportError: broken wheel "
        "(it said: libcudart: no such file)"
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == "given back"


def test_an_import_that_aborts_leaves_a_trace(tmp_path):
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    fake.joinpath("__init__.py").write_text("import os\nos.abort()")
    done = python(
        """
import os, sys
sys.path.insert(1, os.getcwd())
from tfgpu.cli import startup
startup.import_tensorflow()
""",
        path=tmp_path,
    )
    assert "Aborted" in done.stderr
    assert "import_tensorflow" in done.stderr


_WRAPPERS = """
import gc, sys
from tfgpu.cli import startup
startup.prepare_environment()
startup.import_tensorflow(own_code={own_code})
import keras
from sklearn.base import BaseEstimator
print(issubclass(keras.wrappers.SKLearnClassifier, BaseEstimator), gc.isenabled())
"""


@pytest.mark.parametrize("own_code", [pytest.param(True, marks=pytest.mark.slow), False])
def test_keras_imports_scikit_learn_for_code_of_the_users_alone(own_code):
    done = python(_WRAPPERS.format(own_code=own_code))
    assert done.stdout.split() == [str(own_code), "True"], done.stderr


@pytest.mark.parametrize(
    ("command", "flag", "expected"),
    [
        ("train", "--model=lenet", False),
        ("train", "--model=my.package:build", True),
        ("train", "--task=my.package:TASK", True),
        ("evaluate", "--model=my.package:build", True),
        ("tune", "--space=space.py", True),
    ],
)
def test_a_setting_may_name_code_of_the_users(command, flag, expected):
    argv = [flag, *(["--run_dir=runs/x"] if command == "evaluate" else [])]
    assert flags.parse(argv, command=command).names_own_code is expected


def test_a_child_imports_this_package_and_finds_what_its_parent_finds():
    found = startup.child_environment({"PYTHONPATH": "/there", "A": "1"})
    here = str(Path(startup.__file__).parents[2])
    assert found == {"PYTHONPATH": os.pathsep.join([here, "/there"]), "A": "1"}
    assert startup.child_environment({}) == {"PYTHONPATH": here}


def test_standard_error_may_be_closed():
    done = python(
        """
import os
from tfgpu.cli import startup
os.close(2)
with startup.stderr_aside():
    pass
print("fine")
"""
    )
    assert done.stdout == "fine\n"
