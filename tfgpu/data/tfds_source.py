"""Sets of TensorFlow Datasets, read in any order; their features are found by type.

A set that lies prepared is read by its files alone; the code that made it is imported only when it
has to be prepared.
"""

import contextlib
import difflib
import errno
import hashlib
import http.client
import importlib
import io
import json
import os
import pathlib
import queue
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging as absl_logging

from tfgpu.data import preparation
from tfgpu.data.examples import python_op
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.data.tfds_import import tfds
from tfgpu.data.tfrecord_index import TFRecordFiles
from tfgpu.errors import DataError, RequestError, WorkError

# name, name/config, name:version, name/config:version; a version may hold wildcards (3.*.*).
_NAME = re.compile(
    r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d*]+\.[\d*]+(\.[\d*]+)?))?"
)

# A machine without network is told so after this time; TFDS itself retries for minutes.
_NETWORK_SECONDS = 6.0

# A split is taken to have no labels when one of its first examples has TFDS's mark for that, -1.
_LABELS_LOOKED_AT = 32


def default_data_dir(data_dir: str | None) -> str:
    """Returns the directory given, else TFDS_DATA_DIR, else TFDS's own default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.abspath(os.path.expanduser(chosen))


def open_name(
    name: str, *, data_dir: str | None, check: Callable[[Schema], object] = lambda schema: None
) -> Source:
    """Opens a set by its TFDS name, and prepares it first where it has to.

    Args:
        name: `name`, `name/config`, `name:version` or `name/config:version`; of a version the
            last numbers may be left to `*`, as in `4.*`.
        data_dir: Where prepared sets lie; see `default_data_dir`.
        check: Refuses features, with a `RequestError`, before anything is downloaded.

    Raises:
        RequestError: There is no such set, or `check` refuses it.
        DataError: It cannot be prepared, or is damaged.
        WorkError: The disk is full.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise RequestError(
            f"{name!r} is not a data set: give digits, folder:PATH, or a TensorFlow Datasets name "
            "such as cifar10, name/config or name:version"
        )
    root, version = default_data_dir(data_dir), match["version"]
    if version and version.count(".") == 1:
        name, version = f"{name}.*", f"{version}.*"
    directory = _find_prepared(root, match["name"], match["config"], version)
    if directory is None:
        directory = _prepare(name, root, check)
    return open_directory(directory, requested=name)


def open_directory(directory: str, *, requested: str) -> Source:
    """Opens a prepared set by the directory that holds its `dataset_info.json`.

    Args:
        directory: Of one version of the set.
        requested: The name by which the user asked for it, for messages.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with _no_warnings():
            info = tfds.builder_from_directory(directory).info
        features, splits = info.features, info.splits
    except Exception as error:  # TFDS raises whatever its parsers raise.
        raise DataError(
            f"{directory} does not hold a readable data set ({_one_line(error)}); delete it and "
            "prepare the data set again"
        ) from None
    # Other splits, such as SVHN's `extra`, are not used and need not be there.
    used = [name for name in ("train", "test", "validation") if name in splits]
    files = {name: _split_files(splits[name], directory) for name in used}

    def split(split_name: str, label: str | None = None) -> Records | None:
        if split_name not in files or not splits[split_name].num_examples:
            return None
        return _open_split(
            splits[split_name],
            [path for path, _ in files[split_name]],
            format_name=info.file_format.value if info.file_format else "tfrecord",
            features=features,
            label=label,
        )

    return Source(
        name=info.name,
        version=str(info.version),
        fingerprint=_fingerprint(info, directory, files),
        license=info.redistribution_info.license.strip(),
        citation=info.citation,
        homepage=info.homepage,
        schema=schema_of(info, requested),
        split=split,
    )


def _find_prepared(root: str, name: str, config: str | None, version: str | None) -> str | None:
    """Returns the directory of the highest prepared version that fits, if there is one."""
    parent = pathlib.Path(root, name, *([config] if config else []))
    try:
        children = list(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{parent} cannot be read: {error.strerror or error}") from None
    fitting = [
        child
        for child in children
        if re.fullmatch(r"\d+\.\d+\.\d+", child.name)
        and (not version or tfds.core.Version(child.name).match(version))
        and (child / "features.json").exists()
        and (child / "dataset_info.json").exists()
    ]
    if not fitting:
        return None
    return str(max(fitting, key=lambda child: [int(part) for part in child.name.split(".")]))


def _prepare(name: str, root: str, check: Callable[[Schema], object]) -> str:
    """Downloads and prepares a set that TFDS has the code for; returns its directory."""
    try:
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        raise RequestError(_unknown_name(name, root)) from None
    except Exception as error:
        # An unknown configuration or version, or a set whose code needs another package.
        raise RequestError(f"{name!r} cannot be opened: {_reason(error, name)}") from None
    directory = str(builder.data_path)
    if os.path.exists(os.path.join(directory, "features.json")):
        return directory  # Of the default configuration, which only the code knows.
    check(schema_of(builder.info, name))  # Refuses before the download what could not be used.
    by_hand = f"`tfds build {name} --data_dir={root}`"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise DataError(
            f"{name!r} has files that must be downloaded by hand: follow "
            f"https://www.tensorflow.org/datasets/catalog/{builder.name}, then prepare it with "
            f"{by_hand}; the data set digits needs no download"
        )
    if preparation.instead() is not None:
        raise DataError(
            f"{name!r} is not prepared in {root}, and a dry run prepares nothing: run {by_hand} "
            "first, or leave --dry_run out"
        )
    if not network_reachable(list(builder.url_infos or ())):
        raise DataError(
            f"{name!r} is not prepared in {root} and there is no network to download it: run "
            f"{by_hand} on a machine with network and copy the directory, or name the directory "
            "that has it with --data_dir; the data set digits needs no network"
        )
    try:
        with quiet(progress_bars=sys.stderr.isatty()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except Exception as error:  # TFDS raises what its downloader, parsers and Beam raise.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise WorkError(
                f"{root} is full: preparing {name!r} takes {builder.info.dataset_size} and its "
                "download; name another directory with --data_dir"
            ) from None
        raise DataError(
            f"{name!r} could not be prepared in {root}: {_one_line(error)}; try {by_hand}"
        ) from None
    return directory


def _reason(error: Exception, name: str) -> str:
    """Says why TFDS could not open a set whose code it has."""
    set_name, _, config = name.partition(":")[0].partition("/")
    known = list(tfds.builder_cls(set_name).builder_configs)
    if config and config not in known:
        close = difflib.get_close_matches(config, known) or known[:5]
        return f"it has no configuration {config!r}" + (f", but {', '.join(close)}" * bool(close))
    # TFDS puts before the reason how it was called.
    return _one_line(error).rpartition('}": ')[2]


def _unknown_name(name: str, root: str) -> str:
    known = {"digits", *tfds.list_builders(with_community_datasets=False)}
    with contextlib.suppress(OSError):
        known.update(child.name for child in pathlib.Path(root).iterdir() if child.is_dir())
    close = difflib.get_close_matches(name.partition("/")[0].partition(":")[0].lower(), known)
    hint = f"did you mean {' or '.join(close)}?" if close else "digits needs no network"
    return (
        f"there is no data set {name!r}, neither in {root} nor in TensorFlow Datasets "
        f"{tfds.__version__}: {hint}"
    )


def network_reachable(urls: Sequence[str], *, seconds: float = _NETWORK_SECONDS) -> bool:
    """Says within `seconds` whether a host of the URLs answers HTTP at all.

    A proxy named by the environment counts, as it does for TFDS's own downloads.

    Args:
        urls: Downloads; with none that is http(s), Google's storage stands for them.
        seconds: The longest this may take.
    """
    hosts = {
        f"{parts.scheme}://{parts.netloc}/"
        for parts in map(urllib.parse.urlsplit, urls)
        if parts.scheme in ("http", "https")
    }
    asked = sorted(hosts)[:3] or ["https://storage.googleapis.com/"]
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for host in asked:
        # Daemons: resolving a name cannot be given a timeout, only left behind.
        threading.Thread(
            target=lambda url: answers.put(_answers(url, seconds)), args=(host,), daemon=True
        ).start()
    end = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in asked)
    return False


def _answers(url: str, seconds: float) -> bool:
    """Says whether there is a server at the URL, whatever it says about the request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # A certificate is an answer too.
    except (OSError, ValueError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def quiet(*, progress_bars: bool = False) -> Iterator[None]:
    """Keeps TFDS from talking while it prepares a set.

    Args:
        progress_bars: Whether they may show.
    """
    if not progress_bars:
        tfds.disable_progress_bar()
    try:
        # TFDS prints "Downloading and preparing" and "Dataset prepared" there.
        with _no_warnings(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if not progress_bars:
            tfds.enable_progress_bar()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Hides what TFDS 4.9.10 logs about its own use of `FeatureConnector.dtype`."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)


def schema_of(info: Any, requested: str) -> Schema:
    """The features of a set, by type.

    Args:
        info: Its `tfds.core.DatasetInfo`.
        requested: The name by which the user asked for it.
    """
    named = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features.items()) if named else {"": info.features}
    supervised = info.supervised_keys
    pair = supervised and len(supervised) == 2 and all(isinstance(key, str) for key in supervised)
    return Schema(
        requested=requested,
        features={key: feature_of(each) for key, each in features.items()},
        supervised=(supervised[0], supervised[1]) if pair else None,
    )


def feature_of(feature: Any) -> Feature:
    """One of TFDS's features as `tfgpu.data.records` describes it."""
    known = tfds.features
    kind, rate = "other", None
    class_names: tuple[str, ...] = ()
    if isinstance(feature, known.ClassLabel):
        kind, class_names = "class", tuple(feature.names or ())
    elif isinstance(feature, known.LabeledImage):
        kind, class_names = "mask", tuple(feature.names or ())
    elif type(feature) is known.Image:
        kind = "image"
    elif isinstance(feature, known.Video):
        kind = "video"
    elif isinstance(feature, known.Audio):
        kind, rate = "audio", feature.sample_rate
    elif isinstance(feature, known.Text):
        kind = "text"
    elif isinstance(feature, known.Sequence):
        kind, class_names = _of_sequence(feature.feature)
    elif type(feature) in (known.Scalar, known.Tensor):
        kind = "id" if np.dtype(feature.np_dtype).kind in "OSU" else _of_numbers(feature.shape)
    shape = feature.shape if isinstance(feature.shape, tuple) else ()
    return Feature(
        kind=kind,
        shape=shape,
        dtype=_dtype_name(feature),
        class_names=class_names,
        described=f"{type(feature).__name__}{tuple(shape) if shape else ''}",
        sample_rate=rate,
    )


def _of_numbers(shape: tuple[int | None, ...]) -> str:
    return "numbers" if shape else "number"


def _of_sequence(inner: Any) -> tuple[str, tuple[str, ...]]:
    """The kind of a sequence, and the names of the classes in it."""
    known = tfds.features
    if isinstance(inner, known.ClassLabel):
        return "classes", tuple(inner.names or ())
    if isinstance(inner, known.FeaturesDict):
        parts = dict(inner.items()).values()
        boxes = any(isinstance(part, known.BBoxFeature) for part in parts)
        labels = [part for part in parts if isinstance(part, known.ClassLabel)]
        if boxes:
            return "boxes", tuple(labels[0].names or ()) if labels else ()
    if isinstance(inner, known.BBoxFeature):
        return "boxes", ()
    return "other", ()


def _dtype_name(feature: Any) -> str:
    try:
        dtype = np.dtype(feature.np_dtype)
    except (AttributeError, TypeError, ValueError):  # Those of several parts have no one type.
        return ""
    return "string" if dtype.kind in "OSU" else dtype.name


def _split_files(split: Any, directory: str) -> list[tuple[str, int]]:
    """Returns path and size of each file of a split."""
    files = []
    for path in map(os.fspath, split.filepaths):
        try:
            files.append((path, os.stat(path).st_size))
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror or error}; delete {directory} and "
                "prepare the data set again"
            ) from None
    return files


def _open_split(
    split: Any, paths: list[str], *, format_name: str, features: Any, label: str | None
) -> Records | None:
    """Indexes a split; None when `label` names a class and there are none."""
    if format_name == "tfrecord":
        read_records = TFRecordFiles(paths, shard_lengths=split.shard_lengths).read
    elif format_name == "array_record":
        read_records = _array_record_reader(paths)
    else:
        raise DataError(
            f"{paths[0]} is in the format {format_name}, which is not read here: prepare the data "
            "set again with `tfds build --file_format=tfrecord`"
        )

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        records = python_op(read_records, [positions], tf.string)
        return (tf.ensure_shape(records, positions.shape),)

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        with _no_warnings():
            wanted = dict.fromkeys(names, True)
            partial = tfds.decode.PartialDecoding(wanted).extract_features(features)

        def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
            found: dict[str, tf.Tensor] = partial.deserialize_example(record)
            return found

        return decode

    if label is not None:
        first = read_records(np.arange(min(_LABELS_LOOKED_AT, split.num_examples)))
        label_alone = select((label,))
        try:
            labels = [int(label_alone(record)[label]) for record in first]
        except (tf.errors.OpError, ValueError) as error:
            raise DataError(
                f"{paths[0]} does not hold what its dataset_info.json and features.json say: "
                f"{_one_line(error)}"
            ) from None
        if min(labels) < 0:
            return None
    return Records(split.num_examples, read, select)


def _array_record_reader(paths: list[str]) -> Any:
    """Returns the reader of positions for files that have random access of their own."""
    try:
        # By name: it ships no types, and there is no wheel of it for Windows.
        array_record = importlib.import_module("array_record.python.array_record_data_source")
    except ImportError:
        raise DataError(
            f"{paths[0]} needs the package array_record: install it, or prepare the data set "
            "again with `tfds build --file_format=tfrecord`"
        ) from None
    try:
        source = array_record.ArrayRecordDataSource(paths)
        len(source)
    except Exception as error:
        raise DataError(f"{paths[0]} cannot be read: {_one_line(error)}") from None

    def read_records(positions: np.ndarray) -> np.ndarray:
        try:
            found = source.__getitems__(positions.tolist())
        except Exception as error:
            raise DataError(f"{paths[0]} is damaged: {_one_line(error)}") from None
        records = np.empty(len(positions), object)
        records[:] = found
        return records

    return read_records


def _fingerprint(info: Any, directory: str, files: dict[str, list[tuple[str, int]]]) -> str:
    """SHA-256 over the name, the version, the features, and the name and size of each file."""
    with open(os.path.join(directory, "features.json"), encoding="utf-8") as file:
        features = json.load(file)
    content = {
        "name": info.full_name,
        "features": features,
        "splits": {
            split: [(os.path.basename(path), size) for path, size in of_split]
            for split, of_split in files.items()
        },
        "lengths": {split: list(info.splits[split].shard_lengths) for split in files},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
