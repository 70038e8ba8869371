"""Keras' own tests pass with tfgpu's classes in place of Keras': `python -m pytest -m yardstick`.

The tests ship in Keras' wheel. Those that need jax, torch, grain or orbax-checkpoint, which
tfgpu does not, count where these are installed. Takes about 10 minutes on two cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.yardstick

KERAS = Path(keras.__file__).parent / "src"
FILES = [
    KERAS / "trainers" / "trainer_test.py",
    *sorted((KERAS / "callbacks").glob("*_test.py")),
    KERAS / "backend" / "tensorflow" / "distribute_test.py",
    KERAS / "backend" / "tensorflow" / "optimizer_distribute_test.py",
]
# Of Keras 3.15.1 with none of the four installed; 245 with jax.
PASS_WITH_KERAS = 239


def start(models, folder):
    """Runs Keras' tests with the classes of `models`, in a process of their own."""
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n")
    here = Path(__file__).parent
    paths = [here.parent, here / "keras_yardstick", os.environ.get("PYTHONPATH")]
    with open(folder / f"{models}.log", "w") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short"),
                *("-p", "no:cacheprovider", "-p", "keras_yardstick_plugin"),
                *("-c", settings, f"--rootdir={KERAS}", f"--basetemp={folder / models}"),
                *(f"--models={models}", f"--outcomes={folder / models}.jsonl"),
                *FILES,
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
                "KERAS_BACKEND": "tensorflow",
                "CUDA_VISIBLE_DEVICES": "-1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def passed(path):
    outcomes = {}
    for line in path.read_text().splitlines():
        name, outcome = json.loads(line)
        if outcomes.get(name, "passed") == "passed":  # A failed teardown counts.
            outcomes[name] = outcome
    return {name for name, outcome in outcomes.items() if outcome == "passed"}


def test_what_passes_with_keras_passes_with_tfgpu(tmp_path, capsys):
    processes = [start(models, tmp_path) for models in ("keras", "tfgpu")]
    try:
        for process in processes:
            process.wait(timeout=3600)
    finally:
        for process in processes:
            process.kill()
    with_keras, with_ours = (passed(tmp_path / f"{m}.jsonl") for m in ("keras", "tfgpu"))
    with capsys.disabled():
        print(f"\nKeras' own tests: {len(with_keras)} pass with keras.Model,", end=" ")
        print(f"{len(with_keras & with_ours)} of them with tfgpu.Model")
    assert len(with_keras) >= PASS_WITH_KERAS
    missing = sorted(with_keras - with_ours)
    assert not missing, f"{missing}; see {tmp_path / 'tfgpu.log'}"
