"""`tfgpu doctor` as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import tfgpu

ROOT = Path(tfgpu.__file__).parents[1]


def doctor(*flags, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "tfgpu.doctor", *flags],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_machine_that_can_train(tmp_path):
    done = doctor("--json", "--devices=CPU:0", f"--data_dir={tmp_path}", cwd=tmp_path)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (done.returncode, told["can_train"]) == (0, True)
    found = {row["item"]: row for row in told["findings"]}
    assert found["TFDS"]["value"].startswith("wrote and read")
    assert found["TensorFlow"]["value"].startswith("2.")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_word_is_one_line(tmp_path):
    done = doctor("--probe=miror", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("tfgpu: --probe=miror: 'miror' is none of")
    assert "did you mean 'mirrored'" in done.stderr
