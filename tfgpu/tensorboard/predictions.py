"""What a model makes of a data set: for classes, the confusion matrix and the surest mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture

SHOWN = 16  # Images of a batch, and mistakes, in a picture.

Outputs = tuple[Any, Any, Any]
"""(x, y, outputs) of a batch, as NumPy arrays or dicts of them."""


class Mistake(NamedTuple):
    """A wrong prediction for an example."""

    confidence: float  # The probability of the predicted class.
    position: int  # Of the example in the data set.
    label: int
    predicted: int
    x: Any


class ClassPictures:
    """Pictures of images with labels, and of logits over classes.

    Args:
        class_names: One a class, where they are known.
    """

    def __init__(self, class_names: Sequence[str] = ()):
        self._class_names = tuple(class_names)

    def name(self, label: Any) -> str:
        """The name of a class, or its number."""
        label = int(label)
        return str(self._class_names[label]) if label < len(self._class_names) else str(label)

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """A batch as the network sees it: images and labels."""
        if not _is_images(x):
            return {}
        labelled = isinstance(y, np.ndarray) and y.dtype.kind in "iu" and y.size == len(x)
        captions = [[self.name(label)] for label in y.reshape(-1)] if labelled else None
        sheet = pictures.grid(x, captions)
        description = "Images of a training batch as the network sees them, augmented."
        return {"batch": Picture(sheet, description)}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """The confusion matrix and, of images, the most confident mistakes."""
        matrix, mistakes = confusion_and_mistakes(outputs, count=SHOWN)
        names = [self.name(label) for label in range(len(matrix))]
        drawn = pictures.confusion(matrix, names)
        shown = {
            "confusion_matrix": Picture(drawn, "True classes downwards, predicted ones across.")
        }
        if mistakes and _is_images(np.asarray([mistakes[0].x])):
            captions = [
                [f"is {names[each.label]}", f"{names[each.predicted]} {each.confidence:.1%}"]
                for each in mistakes
            ]
            sheet = pictures.grid(np.stack([each.x for each in mistakes]), captions)
            description = "The mistakes the model is surest of: true class, predicted class."
            shown["mistakes"] = Picture(sheet, description)
        return shown


def confusion_and_mistakes(
    outputs: Iterator[Outputs], *, count: int
) -> tuple[np.ndarray, list[Mistake]]:
    """Compares logits with labels.

    Returns:
        The confusion matrix (classes, classes), true class first, and the `count` most confident
        mistakes, in descending order.
    """
    matrix = np.zeros((0, 0), np.int64)
    worst: list[Mistake] = []
    seen = 0
    for x, y, logits in outputs:
        labels = np.reshape(y, [-1])
        chances = tf.nn.softmax(np.asarray(logits, np.float32)).numpy()
        if not matrix.size:
            matrix = np.zeros((chances.shape[-1],) * 2, np.int64)
        predicted = chances.argmax(axis=-1)
        np.add.at(matrix, (labels, predicted), 1)
        for i in np.flatnonzero(predicted != labels):
            confidence, label = float(chances[i].max()), int(labels[i])
            one = tf.nest.map_structure(lambda leaf, i=i: leaf[i], x)
            mistake = Mistake(confidence, seen + int(i), label, int(predicted[i]), one)
            (heapq.heappush if len(worst) < count else heapq.heappushpop)(worst, mistake)
        seen += len(labels)
    return matrix, sorted(worst, key=lambda mistake: (-mistake.confidence, mistake.position))


def outputs_of(model: keras.Model, dataset: Any) -> Iterator[Outputs]:
    """Yields x, y and the model's outputs for each batch of a data set."""
    outputs = model.predict(dataset, verbose=0)
    seen = 0
    for element in dataset:
        x, y = preprocess(dataset, element)
        start, seen = seen, seen + len(tf.nest.flatten(y)[0])
        some = tf.nest.map_structure(lambda leaf, a=start, b=seen: leaf[a:b], outputs)
        yield x, y, some


def pictures_of(report: Any, model: keras.Model, dataset: Any) -> Mapping[str, Picture]:
    """What a report shows of the model's outputs for a data set; see `TensorBoard`."""
    most = getattr(report, "shown_examples", None)
    if most is not None and hasattr(dataset, "first"):  # One of tfgpu.data.
        dataset = dataset.first(most)
    shown: Mapping[str, Picture] = report.predictions(outputs_of(model, dataset))
    return shown


def pictures_of_batch(report: Any, source: Any, *, step: int) -> Mapping[str, Picture]:
    """What a report shows of the batch of a step, as the network sees it.

    Args:
        report: As for `TensorBoard`.
        source: Training data; of those that are not of tfgpu.data nothing is shown, since reading
            them may have side effects.
        step: Of the training.
    """
    if not hasattr(source, "from_step"):
        return {}
    element = next(iter(source.from_step(step).take(1)))
    element = tf.nest.map_structure(lambda leaf: leaf[:SHOWN], element)
    shown: Mapping[str, Picture] = report.batch(*preprocess(source, element))
    return shown


def preprocess(dataset: Any, element: Any) -> tuple[Any, Any]:
    """Returns x and y of an element, after the preprocessing on the device."""
    device_map = getattr(dataset, "device_map", None)
    if device_map is not None:
        element = device_map(element, dataset.resident[0] if dataset.resident else ())
    x, y = tf.nest.map_structure(np.asarray, tuple(element[:2]))
    return x, y


def _is_images(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 4 and x.shape[-1] in (1, 3)
