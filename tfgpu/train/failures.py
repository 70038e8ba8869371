"""Turns what TensorFlow says of memory, disks and damaged data into one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.data.examples import data_errors
from tfgpu.errors import Error, WorkError, disk_full
from tfgpu.machine import runtime
from tfgpu.train.recipe import Resolved


@contextlib.contextmanager
def one_line_failures(config: Resolved, machine: runtime.Runtime) -> Iterator[None]:
    """Turns what TensorFlow says of memory, disks and damaged data into one line."""
    try:
        with data_errors():
            yield
    except tf.errors.OpError as error:
        if (full := disk_full(error)) is not None:
            raise full from error
        if isinstance(error, tf.errors.ResourceExhaustedError) or (
            "out of memory" in error.message.lower()
        ):
            raise _out_of_memory(config, machine) from error
        raise
    except MemoryError as error:
        raise _out_of_memory(config, machine) from error
    except OSError as error:
        if (full := disk_full(error)) is not None and full is not error:
            raise full from error
        raise


@contextlib.contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """Says of a run directory that goes, or cannot be written any more, what has become of it.

    Args:
        run_dir: Where the run writes.

    Raises:
        WorkError: It has been removed, or a file in it cannot be written.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not run_dir.is_dir():
            raise WorkError(
                f"{str(run_dir)!r} was removed while the run wrote there; what it had learnt is "
                "lost: start it again"
            ) from error
        name = Path(str(error.filename)) if isinstance(error, OSError) else Path()
        if isinstance(error, OSError) and disk_full(error) is None and run_dir in name.parents:
            raise WorkError(
                f"{error.strerror} while writing {name}; mend it, and the same command continues "
                "from the last checkpoint"
            ) from error
        raise


def _out_of_memory(config: Resolved, machine: runtime.Runtime) -> WorkError:
    replicas = machine.num_replicas
    hints = []
    if config.input == "resident":
        hints.append("--input=streaming")
    if config.precision == "float32":
        hints.append("--precision=mixed_bfloat16")
    if smaller := config.batch_size // 2 // replicas * replicas:
        hints.insert(0, f"--batch_size={smaller}")
    return WorkError(
        f"out of memory with --batch_size={config.batch_size}; try "
        f"{' or '.join(hints) or 'a smaller model or --image_size'}"
    )


@contextlib.contextmanager
def say_what_is_kept(backup: BackupAndRestore, *, command: str) -> Iterator[None]:
    """Says of a disk that takes no more where the training is safe.

    Args:
        backup: What keeps it.
        command: What continues it.

    Raises:
        WorkError: The disk is full.
    """
    try:
        yield
    except Error:
        raise
    except Exception as error:
        full = disk_full(error)
        if full is None or backup.latest is None:
            raise
        where = f" while writing {full.filename}" if full.filename else ""
        raise WorkError(
            f"{full.strerror}{where}; {backup.latest} keeps the training: free some space, then "
            f"continue with: {command}"
        ) from error
