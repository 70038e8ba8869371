"""`tfgpu launch` as a process."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

from tfgpu.cli.startup import child_environment

TRAIN = ["train", "--devices=CPU:0", "--tensorboard=none"]


def environment(**variables):
    """That of this process, without what earlier tests set for TensorFlow."""
    ours = ("TF_", "KERAS_BACKEND", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER", "SLURM_", "TFGPU_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return child_environment(kept | variables)


def command(*argv):
    return [sys.executable, "-m", "tfgpu.launch", *argv]


def launch(*argv, cwd, timeout=240, **variables):
    """Runs it to its end."""
    return subprocess.run(
        command(*argv),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        timeout=timeout,
    )


@contextlib.contextmanager
def launching(*argv, cwd, **variables):
    """Runs it meanwhile; its output, both streams, is in the file `said` of `cwd`."""
    with open(cwd / "said", "w") as said:
        process = subprocess.Popen(
            command(*argv), stdout=said, stderr=said, cwd=cwd, env=environment(**variables)
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)  # Which ends the workers too.
        process.wait()


def wait_for(pattern, cwd, timeout=120):
    """Waits until the output matches, and returns it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        text = (cwd / "said").read_text()
        if re.search(pattern, text):
            return text
        time.sleep(0.05)
    raise AssertionError(f"no {pattern!r} in:\n{text}")


def workers_of(process):
    """The ids of the workers of a launch on this machine, in their order."""
    command = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    found = subprocess.run(command, capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


def weights(run_dir):
    """A digest of the weights of a finished run."""
    with zipfile.ZipFile(run_dir / "model.keras") as file:
        return hashlib.sha256(file.read("model.weights.h5")).hexdigest()
