"""Stores of small checkpoints, and what is in them."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from tfgpu.checkpoint.format import Checkpoint
from tfgpu.checkpoint.store import CheckpointStore

posix = pytest.mark.skipif(sys.platform == "win32", reason="flock, fork and resource are POSIX")


def store(directory, *, run_id="run", keep=2, warnings=None):
    warn = pytest.fail if warnings is None else warnings.append
    return CheckpointStore(directory, run_id=run_id, keep=keep, warn=warn)


def arrays_of(step):
    """Small arrays, other ones for each step."""
    random = np.random.default_rng(step)
    return {
        "kernel": random.standard_normal((3, 4)).astype(np.float32),
        "iterations": np.asarray(step, np.int64),
    }


def save(directory, step, **kwargs):
    return store(directory).save(step, arrays_of(step), {"step": step}, **kwargs)


WRITER = """
import pathlib, sys, time
from tfgpu.checkpoint.store import CheckpointStore
store = CheckpointStore(pathlib.Path(sys.argv[1]), run_id="run", warn=print)
store.save(1, {}, {})
print("saved", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def writer(directory):
    """A process that has saved a checkpoint to a directory, and is not done with it."""
    command = [sys.executable, "-c", WRITER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saved\n"
        yield process
        process.kill()


def same(read, arrays):
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def sound(found, step):
    """Whether a checkpoint is that of the step, every bit of it."""
    assert isinstance(found, Checkpoint)
    assert found.step == step and found.state == {"step": step}
    same(found.arrays, arrays_of(step))
    return True


def entries(directory):
    return sorted(os.listdir(directory))


def flip(path, offset, mask):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= mask
    path.write_bytes(raw)
