"""A disk that fills up while a run saves, and a run that is continued after it."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from resumed_runs import CASES, Job, command, outcome, same
from trained_runs import the_line

import tfgpu

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
    # TensorFlow's MirroredVariable, when Keras saves weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


def full_disk(patched, *, while_step):
    """Lets no checkpoint of those steps be written."""
    real = os.write

    def write(descriptor, data):
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        found = re.search(r"\.step-(\d+)", place)
        if found and while_step(int(found[1])):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    patched.setattr(os, "write", write)


linux = pytest.mark.skipif(sys.platform != "linux", reason="names files by /proc")


@linux
def test_a_disk_that_is_full_for_a_while_costs_nothing(whole, cut, monkeypatch, capsys):
    kept, seen = max((cut / "checkpoints").glob("step-*")), []
    with monkeypatch.context() as patched:
        full_disk(patched, while_step=lambda step: seen.append(kept.exists()) or step < 18)
        assert command(cut, epochs=3) == 0
    said = capsys.readouterr().out
    assert "warning: no checkpoint could be saved (No space left on device while writing" in said
    assert len(seen) > 3 and all(seen[:4])
    same(whole, cut)


@linux
def test_a_full_disk_at_the_end_keeps_the_last_checkpoint(whole, cut, monkeypatch, capsys):
    tries = []
    with monkeypatch.context() as patched:
        full_disk(patched, while_step=lambda step: step == 21 and not tries.append(step))
        assert command(cut, epochs=3) == 5
    line = the_line(capsys)
    assert len(tries) == 2
    assert "No space left on device" in line and "step-00000020 holds" in line
    assert outcome(cut)["status"] == "failed"
    assert command(cut, epochs=3) == 0
    same(whole, cut)


@linux
@pytest.mark.slow
def test_a_disk_that_has_room_again_at_the_end(whole, cut, monkeypatch, capsys):
    tries = []
    with monkeypatch.context() as patched:
        full_disk(
            patched,
            while_step=lambda step: step == 21 and not tries.append(step) and len(tries) < 2,
        )
        assert command(cut, epochs=3) == 0
    assert len(tries) > 1
    same(whole, cut)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="nobody may mount a tmpfs here",
)
@pytest.mark.parametrize("until", ["it is told", "the run ends"])
def test_a_real_disk_that_fills_up(place, tmp_path, until):
    settings = CASES["float16, average"] | {"epochs": "40"}
    Job(place, tmp_path / "whole", settings).finish()
    job = Job(place, tmp_path / "disk" / "run", settings)
    (tmp_path / "disk").mkdir()
    script = [sys.executable, "-c", FILL, str(tmp_path), until, *job.argv]
    environment = os.environ | {"PYTHONPATH": str(Path(tfgpu.__file__).parents[1])}
    done = subprocess.run(
        ["unshare", "-rm", *script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no checkpoint could be saved (No space left on device" in done.stdout
    if until == "the run ends":
        assert "No space left on device" in done.stderr and "keeps the training" in done.stderr
    shutil.copytree(tmp_path / "saved", job.path)
    same(tmp_path / "whole", job.path)


# The mount is this process's own and goes with it.
FILL = """
import contextlib, glob, os, shutil, subprocess, sys, threading, time
place, until, argv = sys.argv[1], sys.argv[2], [sys.executable, *sys.argv[3:]]
disk = place + "/disk"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
told = threading.Event()
def repeat():
    for line in process.stdout:
        print(line, end="", flush=True)
        if until == "it is told" and "no checkpoint could be saved" in line:
            told.set()
repeating = threading.Thread(target=repeat)
repeating.start()
while not glob.glob(disk + "/run/checkpoints/step-0000001*"):
    time.sleep(0.001)
with open(disk + "/filler", "ab", buffering=0) as filler:
    while not told.is_set() and process.poll() is None:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        time.sleep(0.005)
os.remove(disk + "/filler")
code = process.wait()
repeating.join()
if until == "the run ends":
    assert code == 5, code
    code = subprocess.run(argv).returncode
shutil.copytree(disk + "/run", place + "/saved")
sys.exit(code)
"""
