"""Predictions for what the user names: files in, a line each out, a batch at a time.

How an argument is read and an output shown is the task's; see `tfgpu.tasks.parts.predictor`.
"""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.errors import DataError, RequestError, WorkError
from tfgpu.machine import runtime
from tfgpu.predict.settings import PredictSettings
from tfgpu.tasks.parts.predictor import Predictor, csv_row

_READERS = 8
"""Threads: they wait for the disk, and decoding leaves Python's lock."""


def predict(config: PredictSettings, run: TrainedRun) -> int:
    """Predicts and prints as it goes.

    Args:
        config: The settings.
        run: What `--run_dir` holds.

    Returns:
        1 when something could not be read, else 0.

    Raises:
        tfgpu.errors.Error: There is no item at all, or the run or the work is at fault.
    """
    predictor = run.task(config.task).predict(run.spec, config)
    arguments = config.arguments_given
    predictor.refuse_nothing(arguments)
    machine = runtime.start(
        strategy=config.strategy, devices=config.devices, virtual_devices=config.virtual_devices
    )
    machine.check_batch(config.batch_size)
    predictor.folder = folder = _folder(config, run, predictor)
    with machine.strategy.scope():
        model = run.load_model(builder=config.model, task=config.task)
        # Batches differ in size, and XLA would compile each size.
        model.compile(jit_compile=False)
    # A path need not be text that can be printed; it goes out as the bytes it came in as.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")

    done = unreadable = 0
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        found = predictor.find(arguments)
        # A batch of arguments at a time, so that a list without an end can be read.
        while batch := list(itertools.islice(found, config.batch_size)):
            loaded = readers.map(lambda item: _load(predictor, item), batch)
            good = []
            for item, read in zip(batch, loaded, strict=True):
                if isinstance(read, DataError):
                    print(f"tfgpu: {read}", file=sys.stderr, flush=True)
                    unreadable += 1
                else:
                    good.append((item, *read))
            if not good:
                continue
            items, xs, raw = zip(*good, strict=True)
            try:
                x = tf.nest.map_structure(lambda *leaves: np.stack(leaves), *xs)
                outputs = model.predict_on_batch(x)
            except tf.errors.ResourceExhaustedError as error:
                raise WorkError(
                    f"out of memory with --batch_size={config.batch_size}; lower it"
                ) from error
            if folder is not None:
                for written in predictor.written(items, raw, outputs):
                    for file in written:
                        _write(folder / file.name, file.content)
            if config.format == "csv" and not done:
                print(csv_row(predictor.header_of(items, outputs)))
            done += len(items)
            for line in predictor.lines(items, outputs):
                print(line)
            sys.stdout.flush()
    if not done and not unreadable:
        raise RequestError(f"no {predictor.unit}: standard input named none")
    if unreadable:
        print(f"tfgpu: {unreadable} of {unreadable + done} could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def _folder(config: PredictSettings, run: TrainedRun, predictor: Predictor) -> Path | None:
    """The folder that files go to; None where the task writes none."""
    if not predictor.writes_files:
        if config.out is not None:
            config.refuse("out", "this run's task writes no files; leave it out")
        return None
    folder = Path(config.out).expanduser() if config.out else run.path / "predictions"
    files.make_directory(folder, flag="out")
    return folder


def _load(predictor: Predictor, item: Any) -> tuple[Any, Any] | DataError:
    """Reads an item as x and what is shown of it, or says what is wrong with it."""
    if isinstance(item, DataError):
        return item
    try:
        return predictor.load(item), predictor.raw(item)
    except DataError as error:
        return error


def _write(path: Path, content: bytes) -> None:
    os.makedirs(path.parent, exist_ok=True)
    with files.replacing(path) as beside:
        beside.write_bytes(content)
