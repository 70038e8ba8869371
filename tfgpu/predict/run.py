"""Labels for images: paths in, a line each out, a batch at a time.

An image is decoded as every image of a folder is decoded and brought to the model's size by the
one rule of `tfgpu.data.examples.resize`, whatever data set the model was trained on.
"""

from __future__ import annotations

import concurrent.futures
import csv
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.data.examples import resize
from tfgpu.data.folder import EXTENSIONS, read_image
from tfgpu.errors import DataError, RequestError, WorkError
from tfgpu.machine import runtime
from tfgpu.predict.settings import PredictSettings

_READERS = 8
"""Threads: they wait for the disk, and decoding leaves Python's lock."""


def predict(config: PredictSettings, run: TrainedRun) -> int:
    """Labels images and prints them as it goes.

    Args:
        config: The settings.
        run: What `--run_dir` holds.

    Returns:
        1 when something could not be read, else 0.

    Raises:
        tfgpu.errors.Error: There is no image at all, or the run or the work is at fault.
    """
    _refuse_nothing(config.paths)
    machine = runtime.start(
        strategy=config.strategy, devices=config.devices, virtual_devices=config.virtual_devices
    )
    machine.check_batch(config.batch_size)
    with machine.strategy.scope():
        model = run.load_model(builder=config.model)
        # Batches differ in size, and XLA would compile each size.
        model.compile(jit_compile=False)
    # A path need not be text that can be printed; it goes out as the bytes it came in as.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")

    labelled = unreadable = 0
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        found = find_images(config.paths)
        # A batch of paths at a time, so that a list without an end can be read.
        while batch := list(itertools.islice(found, config.batch_size)):
            images, paths = [], []
            loaded = readers.map(functools.partial(_load, shape=run.image_shape), batch)
            for path, image in zip(batch, loaded, strict=True):
                if isinstance(image, DataError):
                    print(f"tfgpu: {image}", file=sys.stderr, flush=True)
                    unreadable += 1
                else:
                    images.append(image)
                    paths.append(str(path))
            if not images:
                continue
            try:
                logits = model.predict_on_batch(np.stack(images))
            except tf.errors.ResourceExhaustedError as error:
                raise WorkError(
                    f"out of memory with --batch_size={config.batch_size}; lower it"
                ) from error
            probabilities = tf.nn.softmax(logits).numpy()
            if config.format == "csv" and not labelled:
                print(_csv_row(["path", "label", "probability", *run.class_names]))
            labelled += len(images)
            for line in _lines(config, paths, probabilities, run.class_names):
                print(line)
            sys.stdout.flush()
    if not labelled and not unreadable:
        raise RequestError("no images: standard input named none")
    if unreadable:
        print(f"tfgpu: {unreadable} of {unreadable + labelled} could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def find_images(paths: Iterable[str]) -> Iterator[str | DataError]:
    """Yields the images that paths stand for, in order, reading no more paths than it must.

    Args:
        paths: Of files, of folders (every image below them, sorted), and "-" for more paths, one
            a line, on standard input.

    Yields:
        A path, or what is wrong with a folder.
    """
    for path in paths:
        if path == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from find_images(line for line in lines if line and line != "-")
        elif os.path.isdir(path):
            yield from _below(path)
        else:
            yield path


def _below(folder: str) -> Iterator[str | DataError]:
    problems: list[DataError] = []

    def fail(error: OSError) -> None:
        problems.append(DataError(f"{error.filename} cannot be read: {error.strerror}"))

    empty = True
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                empty = False
                yield os.path.join(parent, name)
    if empty and not problems:
        problems.append(DataError(f"{folder} holds no images ({', '.join(EXTENSIONS)})"))
    yield from problems


def _refuse_nothing(paths: Sequence[str]) -> None:
    """Refuses folders without any image, before the work begins.

    Raises:
        RequestError: No path can stand for an image.
    """
    reasons = []
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            return
        first = next(_below(path))
        if not isinstance(first, DataError):
            return
        reasons.append(str(first))
    raise RequestError(f"no images: {'; '.join(reasons)}")


def _load(path: str | DataError, *, shape: tuple[int, int, int]) -> np.ndarray | DataError:
    """Reads an image as uint8 of `shape`, or says what is wrong with it."""
    if isinstance(path, DataError):
        return path
    try:
        image = read_image(path, channels=shape[2])
    except DataError as error:
        return error
    with tf.device("CPU"):
        return resize(tf.constant(image), shape[:2]).numpy()


def _lines(
    config: PredictSettings,
    paths: Sequence[str],
    probabilities: np.ndarray,
    names: Sequence[str],
) -> Iterator[str]:
    """The lines of a batch, in the format asked for."""
    wide = max(map(len, paths))
    for path, row in zip(paths, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        label, probability = names[order[0]], float(row[order[0]])
        if config.format == "table":
            likeliest = (f"{names[i]} {row[i]:.4f}" for i in order[: config.top_k])
            yield f"{path:<{wide}}  {'  '.join(likeliest)}"
        elif config.format == "csv":
            yield _csv_row([path, label, probability, *row.tolist()])
        else:
            every = dict(zip(names, row.tolist(), strict=True))
            yield json.dumps(
                {"path": path, "label": label, "probability": probability, "probabilities": every}
            )


def _csv_row(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
