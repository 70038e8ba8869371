"""The predictions of a model: the confusion matrix and the most confident mistakes."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Mistake(NamedTuple):
    """A wrong prediction for an image."""

    confidence: float  # The probability of the predicted class.
    position: int  # Of the example in the data set.
    label: int
    predicted: int
    image: np.ndarray


def evaluate(
    model: keras.Model, dataset: tf.data.Dataset, *, count: int
) -> tuple[np.ndarray, list[Mistake]]:
    """Compares the predictions for a data set with its labels.

    Returns:
        The confusion matrix (classes, classes), true class first, and the `count` most confident
        mistakes, in descending order.
    """
    outputs = np.asarray(model.predict(dataset, verbose=0), np.float32)
    probabilities = tf.nn.softmax(outputs).numpy()
    classes = probabilities.shape[-1]
    matrix = np.zeros((classes, classes), np.int64)
    worst: list[Mistake] = []
    seen = 0
    for element in dataset:
        images, labels = preprocess(dataset, element)
        chances = probabilities[seen : seen + len(labels)]
        predicted = chances.argmax(axis=-1)
        np.add.at(matrix, (labels, predicted), 1)
        for i in np.flatnonzero(predicted != labels):
            confidence, label = float(chances[i].max()), int(labels[i])
            mistake = Mistake(confidence, seen + int(i), label, int(predicted[i]), images[i])
            (heapq.heappush if len(worst) < count else heapq.heappushpop)(worst, mistake)
        seen += len(labels)
    return matrix, sorted(worst, key=lambda mistake: (-mistake.confidence, mistake.position))


def preprocess(dataset: Any, element: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of an element, after the preprocessing on the device."""
    device_map = getattr(dataset, "device_map", None)
    if device_map is not None:
        element = device_map(element, dataset.resident[0] if dataset.resident else ())
    images, labels = element[:2]
    return np.asarray(images), np.asarray(labels).reshape(-1)
