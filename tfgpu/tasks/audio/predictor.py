"""How `predict` reads recordings: WAV files; of ready features, the rows of arrays."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data import npz_source, wav
from tfgpu.data.records import Records
from tfgpu.errors import DataError, Error, shown
from tfgpu.tasks.audio.reading import FEATURES, LENGTH, SAMPLES, is_input
from tfgpu.tasks.parts.predictor import ClassLines, Predictor, find_files


@dataclasses.dataclass(frozen=True)
class _Row:
    """A recording in a file of arrays; shown as where it stands."""

    file: str
    split: str
    number: int

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.number}"
            if self.split == "train"
            else (f"{self.file}:{self.split}:{self.number}")
        )


class AudioPredictor(ClassLines, Predictor):
    """Classifies WAV files, or the frames of features in `.npz` files."""

    unit = "recordings"

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        self._ready = spec.fitted["input"] == FEATURES
        self.extensions = (".npz",) if self._ready else wav.EXTENSIONS
        self._opened = functools.lru_cache(maxsize=4)(self._open)

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """See `Predictor.find`."""
        for file in find_files(arguments, self.extensions, unit=self.unit, left=self.left):
            if isinstance(file, DataError) or not self._ready:
                yield file
                continue
            try:
                for split, records in self._opened(file).items():
                    for number in range(records.num_examples):
                        yield _Row(file, split, number)
            except Error as error:
                yield DataError(str(error))

    def _open(self, file: str) -> dict[str, Records]:
        """The splits of a file of arrays."""
        source = npz_source.open_source(file)
        name, features = self.spec.fitted["name"], len(self.spec.fitted["mean"])
        feature = source.schema.features.get(name)
        if feature is None or not is_input(feature) or feature.shape[-1] != features:
            raise DataError(
                f"{file} has no array {name!r} of frames of {features} features, which the model "
                f"was trained on; it has {source.schema.described}"
            )
        found = {split: source.split(split, None) for split in ("train", "validation", "test")}
        return {split: records for split, records in found.items() if records is not None}

    def to_json(self, item: Any) -> Any:
        """See `Predictor.to_json`: of arrays the place, which every worker opens by itself."""
        return dataclasses.astuple(item) if self._ready else item

    def from_json(self, value: Any) -> Any:
        """See `Predictor.from_json`."""
        return _Row(*value) if self._ready else value

    def load(self, item: Any) -> dict[str, Any]:
        """See `Predictor.load`: x without the batch."""
        fitted = self.spec.fitted
        length = fitted["length"]
        if self._ready:
            records = self._opened(item.file)[item.split]
            name = fitted["name"]
            parts = records.read(tf.constant([item.number], tf.int64))
            with tf.device("CPU"):
                found = records.select((name,))(*(part[0] for part in parts))[name]
            values = found.numpy().astype(np.float32)
        else:
            values = wav.read_wav(item, fitted["rate"], remarks=self.remarks)
        if len(values) > length:
            read = f"{length} frames" if self._ready else f"{length / fitted['rate']:.3g} s"
            self.remarks.add(
                f"longer than the {read} that are read", shown(os.path.basename(str(item)))
            )
        real = min(len(values), length)
        whole = np.zeros((length, *values.shape[1:]), values.dtype)
        whole[:real] = values[:real]
        return {FEATURES if self._ready else SAMPLES: whole, LENGTH: np.int32(real)}
