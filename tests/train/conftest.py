"""A user's folder, and the runs of whole trainings in it, each made once."""

import json
import shutil
import sys
from pathlib import Path

import pytest

# What they assert is shown as in tests.
pytest.register_assert_rewrite("resumed_runs", "trained_runs")


@pytest.fixture(scope="session")
def place(tmp_path_factory, tensorflow):
    """A user's folder: images, modules with models, and runs."""
    import resumed_runs
    import trained_runs

    place = tmp_path_factory.mktemp("user")
    trained_runs.write_images(place / "images")
    (place / "e2e_models.py").write_text(trained_runs.MODEL)
    (place / "resume_models.py").write_text(resumed_runs.MODEL)
    return place


@pytest.fixture
def here(place, monkeypatch):
    """Everything of the test happens in the user's folder."""
    import tfgpu

    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "data"))
    # A checkout need not be installed for the processes that are started here.
    monkeypatch.setenv("PYTHONPATH", str(Path(tfgpu.__file__).parents[1]))


@pytest.fixture(scope="session")
def _runs():
    return {}


@pytest.fixture
def run(place, here, _runs):
    """Runs the command with changes to `trained_runs.BASE`, once a set of changes."""
    from trained_runs import Run, argv_of, command

    def run(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in _runs:
            path = place / "runs" / f"run{len(_runs)}"
            assert command(*argv_of(changes), f"--run_dir={path}") == 0
            _runs[key] = Run(path)
        return _runs[key]

    return run


# ---- runs that are continued ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def made(place, tmp_path_factory):
    """Runs that are made once: a whole one, and one that was killed after 12 of its 21 steps."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def whole(made, here):
    from resumed_runs import command

    path = made / "whole"
    if not path.exists():
        assert command(path, epochs=3) == 0
    return path


@pytest.fixture
def cut(made, here, tmp_path, monkeypatch):
    """A run of its own that can be continued."""
    from resumed_runs import killed

    if not (made / "cut").exists():
        killed(made / "cut", monkeypatch, steps=12, epochs=3)
    return Path(shutil.copytree(made / "cut", tmp_path / "run"))
