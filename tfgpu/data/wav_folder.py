"""`folder:PATH` with recordings: WAV files, one directory a class.

    PATH/{train,test}/CLASS/*.wav      or      PATH/CLASS/*.wav

Recordings are mono at one rate: channels are mixed down, and files of another rate than most have
are resampled. Files without a sample are left out. All of it is said.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfgpu.data import wav
from tfgpu.data.class_folders import find_classes
from tfgpu.data.examples import python_op
from tfgpu.data.file_contents import fingerprints
from tfgpu.data.file_notes import notes
from tfgpu.data.file_tree import FileTree, Remarks
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError, shown

_SHOWN = 3  # Names in a line about many.


def holds_recordings(directory: str, *, others: tuple[str, ...]) -> bool:
    """Whether there are WAV files below a directory, and no files with other extensions."""
    tree = FileTree((*wav.EXTENSIONS, *others), root=directory)
    found = False
    # What cannot be read is named by who reads the files.
    for _, file in tree.find([("", directory)], on_error=lambda error: None):
        if file.lower().endswith(others):
            return False
        found = True
    return found


def open_wav_folders(path: str, root: str, split_dirs: Mapping[str, str], left: Remarks) -> Source:
    """Opens a directory of recordings.

    Args:
        path: As the user wrote it.
        root: The directory.
        split_dirs: The directory of each split, which holds one for each class.
        left: What was left out so far.

    Raises:
        DataError: See `find_classes`; or a file cannot be read, or is encoded as nothing that is
            read here, or has floats that are not finite; or no file of a split has a sample.
    """
    classes = find_classes(split_dirs, left, extensions=wav.EXTENSIONS, what="WAV files")
    class_names, files = classes.names, classes.files
    every = [file for paths, _ in files.values() for file in paths]
    # Threads because opening waits for the disk.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = dict(zip(every, pool.map(wav.read_header, every, chunksize=64), strict=True))
        # Floats that are no numbers are found here, and not in the test once all is trained.
        loud = sum(pool.map(wav.is_loud, found, found.values(), chunksize=64))
    kept = {split: _with_samples(*of, found, split=split) for split, of in files.items()}
    rates = collections.Counter(found[file].rate for file in kept["train"][0])
    rate = max(rates, key=lambda each: (rates[each], each))
    audio = Feature(
        kind="audio",
        shape=(None,),
        dtype="int16",
        sample_rate=rate,
        described=f"WAV files at {rate} Hz",
    )
    features = {
        "audio": audio,
        "label": Feature(
            kind="class", dtype="int32", class_names=class_names, described="the folder of a class"
        ),
    }
    named = fingerprints(list(every), root)

    def split(split_name: str, label: str | None = None) -> Records | None:
        return _records(*kept[split_name], rate=rate) if split_name in kept else None

    return Source(
        name=f"folder:{path}",
        fingerprint=hashlib.sha256(json.dumps(named).encode()).hexdigest(),
        schema=Schema(
            requested=f"folder:{path}",
            features=features,
            supervised=("audio", "label"),
        ),
        split=split,
        notes=(
            *notes(
                left,
                {split: paths for split, (paths, _) in kept.items()},
                Remarks(),
                what="WAV files",
                class_names=class_names,
                linked=classes.linked,
            ),
            *_notes(found, rate, loud),
        ),
    )


def _with_samples(
    paths: Sequence[str], labels: Sequence[int], headers: Mapping[str, wav.Header], *, split: str
) -> tuple[list[str], list[int]]:
    """The files that have a sample, and their classes."""
    kept = [
        (path, label) for path, label in zip(paths, labels, strict=True) if headers[path].samples
    ]
    if not kept:
        raise DataError(f"no WAV file of the {split} split has a sample, such as {shown(paths[0])}")
    return [path for path, _ in kept], [label for _, label in kept]


def _notes(headers: Mapping[str, wav.Header], rate: int, loud: int) -> tuple[str, ...]:
    """What is unusual about the files, of which some are louder than full scale."""
    said = []
    empty = [path for path, header in headers.items() if not header.samples]
    if empty:
        files = ", ".join(map(shown, empty[:_SHOWN])) + ", ..." * (len(empty) > _SHOWN)
        verb = "has a length of zero and is" if len(empty) == 1 else "have a length of zero and are"
        said.append(f"{len(empty):,} {verb} left out: {files}")
    other = collections.Counter(
        header.rate for header in headers.values() if header.rate != rate and header.samples
    )
    if other:
        rates = ", ".join(f"{count:,} of {each} Hz" for each, count in sorted(other.items()))
        verb = "is" if sum(other.values()) == 1 else "are"
        said.append(f"{rates} {verb} resampled to {rate} Hz, the rate of most of the files")
    several = sum(header.channels > 1 for header in headers.values())
    if several:
        verb = "has" if several == 1 else "have"
        said.append(f"{several:,} {verb} several channels, which are mixed down to one")
    if loud:
        one = loud == 1
        said.append(
            f"{loud:,} go{'es' * one} beyond full scale, and {'is' if one else 'are'} divided by "
            f"{'its' if one else 'their'} greatest sample"
        )
    return tuple(f"WAV files: of {len(headers):,}, {each}" for each in said)


def _records(paths: Sequence[str], labels: Sequence[int], *, rate: int) -> Records:
    with tf.device("CPU"):
        all_paths = tf.constant(list(map(os.fsencode, paths)))
        all_labels = tf.constant(list(labels), tf.int32)

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU"):
            return tf.gather(all_paths, positions), tf.gather(all_labels, positions)

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        def decode(path: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
            found = {"label": label}
            if "audio" in names:
                samples = python_op(
                    lambda file: wav.read_wav(os.fsdecode(file), rate), [path], tf.int16
                )
                found["audio"] = tf.ensure_shape(samples, [None])
            return {name: found[name] for name in names}

        return decode

    return Records(len(paths), read, select)
