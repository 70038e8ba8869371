"""What `evaluate` and TensorBoard show of recordings: that of classes, with spectrograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.models.audio import FULL_SCALE
from tfgpu.tasks.audio.reading import FEATURES, LENGTH, SAMPLES, model_input
from tfgpu.tasks.parts.class_report import ClassReport
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import SHOWN, Outputs, confusion_and_mistakes

_WIDEST = 192  # Columns of a picture: of longer recordings neighbouring frames are averaged.
_COLOURS = np.array([[8, 8, 48], [96, 24, 128], [224, 88, 72], [255, 240, 160]], np.float64)


class AudioReport(ClassReport):
    """That of classes, with pictures of spectrograms or features as the model sees them."""

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        labels = np.asarray(y)
        if labels.ndim == 2:  # Of mixed recordings.
            labels = labels.argmax(axis=-1)
        captions = [[self.spec.class_names[int(label)]] for label in labels[:SHOWN].reshape(-1)]
        some = [{name: values[i] for name, values in x.items()} for i in range(len(captions))]
        description = "Recordings of a training batch as the model sees them: time to the right."
        return {"batch": Picture(pictures.grid(self._drawn(some), captions), description)}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`."""
        kept = list(outputs)
        shown = dict(super().predictions(iter(kept)))
        names = self.spec.class_names
        _, mistakes = confusion_and_mistakes(iter(kept), count=SHOWN)
        if mistakes:
            captions = [
                [f"is {names[each.label]}", f"{names[each.predicted]} {each.confidence:.1%}"]
                for each in mistakes
            ]
            drawn = self._drawn([each.x for each in mistakes])
            description = "The mistakes the model is surest of: true class, predicted class."
            shown["mistakes"] = Picture(pictures.grid(drawn, captions), description)
        return shown

    def _drawn(self, recordings: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """uint8 (n, features, time, 3): low features at the bottom, padding black."""
        return np.stack([self._picture(each) for each in recordings])

    def _picture(self, x: Mapping[str, np.ndarray]) -> np.ndarray:
        made = model_input(self.spec)
        length = int(x[LENGTH])
        if made.spectrogram is None:
            values = (x[FEATURES] - np.asarray(made.mean)) / made.scale
            real = length
        else:
            values = made.spectrogram.of(x[SAMPLES] / FULL_SCALE)
            real = int(made.spectrogram.frames(length))
        group = -(-len(values) // _WIDEST)
        values, real = _averaged(values, group), max(1, real // group)
        low, high = np.percentile(values[:real], [2, 98])
        part = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (len(_COLOURS) - 1)
        colours = np.stack(
            [np.interp(part, range(len(_COLOURS)), channel) for channel in _COLOURS.T], axis=-1
        )
        colours[real:] = 0
        return np.flip(colours.round().astype(np.uint8).transpose(1, 0, 2), axis=0)


def _averaged(values: np.ndarray, group: int) -> np.ndarray:
    """Means of neighbouring rows; the last ones that fill no group are left out."""
    whole = len(values) // group * group
    averaged: np.ndarray = values[:whole].reshape(-1, group, values.shape[1]).mean(axis=1)
    return averaged
