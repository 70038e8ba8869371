"""Predictions for what the user names: files in, a line each out, a batch at a time.

How an argument is read and an output shown is the task's; see `tfgpu.tasks.parts.predictor`.
"""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfgpu.artifacts import files
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cluster.membership import Membership, alone
from tfgpu.errors import DataError, RequestError, WorkError
from tfgpu.machine import runtime
from tfgpu.predict.settings import PredictSettings
from tfgpu.tasks.parts.predictor import Predictor, csv_row

_READERS = 8
"""Threads: they wait for the disk, and decoding leaves Python's lock."""


class _Labelled(NamedTuple):
    """What came of a batch of arguments.

    Attributes:
        done: How many were predicted for.
        problems: A line for each that could not be read.
        header: Of a table of all.
        lines: To print.
        written: Files to write, by name.
    """

    done: int
    problems: list[str]
    header: str
    lines: list[str]
    written: list[tuple[str, bytes]]


def predict(config: PredictSettings, run: TrainedRun, *, members: Membership | None = None) -> int:
    """Predicts and prints as it goes.

    Of several workers each takes a batch in turn and reads its files by itself; the chief alone
    says what there is to predict for, writes and prints, in the order of one machine.

    Args:
        config: The settings.
        run: What `--run_dir` holds.
        members: The processes that work together; None for one by itself.

    Returns:
        1 when something could not be read, else 0.

    Raises:
        tfgpu.errors.Error: There is no item at all, or the run or the work is at fault.
    """
    members = members or alone()
    predictor = run.task(config.task).predict(run.spec, config)
    arguments = config.arguments_given
    if members.is_chief:
        predictor.refuse_nothing(arguments)
    machine = runtime.start(
        # Nothing is exchanged within a step.
        strategy=config.strategy if members.alone else "mirrored",
        devices=config.devices,
        virtual_devices=config.virtual_devices,
        processes=members.sharing_cores,
    )
    machine.check_batch(config.batch_size)
    folder = _folder(config, run, predictor) if members.is_chief else None
    # The lines name the files, whoever makes them.
    place = members.broadcast("folder", None if folder is None else str(folder)).fields["value"]
    predictor.folder = None if place is None else Path(place)
    with machine.strategy.scope():
        model = run.load_model(builder=config.model, task=config.task)
        # Batches differ in size, and XLA would compile each size.
        model.compile(jit_compile=False)
    # A path need not be UTF-8; what is said of it is.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")

    done = unreadable = 0
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:

        def label(batch: list[Any]) -> _Labelled:
            return _label(batch, config, predictor, model, readers)

        found = predictor.find(arguments) if members.is_chief else iter(())
        # A batch of arguments at a time, so that a list without an end can be read.
        batches = iter(lambda: list(itertools.islice(found, config.batch_size)), [])
        for labelled in _in_turn(members, predictor, batches, label):
            unreadable += len(labelled.problems)
            for problem in labelled.problems:
                print(f"tfgpu: {problem}", file=sys.stderr, flush=True)
            if not labelled.done:
                continue
            for name, content in labelled.written:
                assert folder is not None
                _write(folder / name, content)
            if config.format == "csv" and not done:
                print(labelled.header)
            done += labelled.done
            for line in labelled.lines:
                print(line)
            sys.stdout.flush()
    for remarks in members.finish("the end", predictor.remarks.to_json())[1:]:
        predictor.remarks.merge(remarks)
    if not members.is_chief:
        return 0
    for name, remarks in (
        ("left out", predictor.left),
        (predictor.unit, predictor.remarks.in_order()),
    ):
        if remarks.counts:
            print(f"tfgpu: {name}: {remarks}", file=sys.stderr)
    if not done and not unreadable:
        where = "standard input named none" if "-" in arguments else "what was named holds none"
        raise RequestError(f"no {predictor.unit}: {where}")
    if unreadable:
        print(f"tfgpu: {unreadable} of {unreadable + done} could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def _in_turn(
    members: Membership,
    predictor: Predictor,
    batches: Iterator[list[Any]],
    label: Callable[[list[Any]], _Labelled],
) -> Iterator[_Labelled]:
    """Has each worker label a batch in turn; yields what came of all of them, at the chief."""
    if members.alone:
        yield from map(label, batches)
        return
    while True:
        # What is wrong with an argument travels as its text.
        round_ = [
            [
                ["problem", str(i)] if isinstance(i, DataError) else ["item", predictor.to_json(i)]
                for i in batch
            ]
            for batch in itertools.islice(batches, members.size)
        ]
        round_ = members.broadcast("a round of arguments", round_).fields["value"]
        if not round_:
            return
        own = _Labelled(0, [], "", [], [])
        if members.rank < len(round_):
            own = label(
                [
                    DataError(i) if kind == "problem" else predictor.from_json(i)
                    for kind, i in round_[members.rank]
                ]
            )
        sizes = [(name, len(content)) for name, content in own.written]
        body = b"".join(content for _, content in own.written)
        told = [own.done, own.problems, own.header, own.lines, sizes]
        gathered = members.gather("labelled", told, body)
        for message in gathered or ():
            done, problems, header, lines, sizes = message.fields["value"]
            written, start = [], 0
            for name, size in sizes:
                written.append((name, message.body[start : start + size]))
                start += size
            yield _Labelled(done, problems, header, lines, written)


def _label(
    batch: list[Any],
    config: PredictSettings,
    predictor: Predictor,
    model: keras.Model,
    readers: concurrent.futures.Executor,
) -> _Labelled:
    """Reads a batch of arguments and predicts for it."""
    problems, good = [], []
    loaded = readers.map(lambda item: _load(predictor, item), batch)
    for item, read in zip(batch, loaded, strict=True):
        if isinstance(read, DataError):
            problems.append(str(read))
        else:
            good.append((item, *read))
    if not good:
        return _Labelled(0, problems, "", [], [])
    items, xs, raw = zip(*good, strict=True)
    try:
        x = tf.nest.map_structure(lambda *leaves: np.stack(leaves), *xs)
        outputs = model.predict_on_batch(x)
    except tf.errors.ResourceExhaustedError as error:
        raise WorkError(f"out of memory with --batch_size={config.batch_size}; lower it") from error
    written = []
    if predictor.writes_files:
        for some in predictor.written(items, raw, outputs):
            written += [(str(file.name), file.content) for file in some]
    header = csv_row(predictor.header_of(items, outputs)) if config.format == "csv" else ""
    return _Labelled(len(items), problems, header, list(predictor.lines(items, outputs)), written)


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
