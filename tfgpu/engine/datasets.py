"""What a `tf.data.Dataset` says of how it may be read."""

from __future__ import annotations

import tensorflow as tf

from tfgpu.engine import keras_internals as private


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same data set without tf.data's autotuning.

    There is little to tune here, and the thread that does it sleeps for up to a minute at a time,
    for the rest of which the end of an iterator may wait (TensorFlow 2.21): between two trainings
    of one process that was seen to take 40 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def may_be_read_ahead(dataset: tf.data.Dataset) -> bool:
    """Whether batches may be asked for before they are due, as TensorFlow does by itself.

    Whoever turns tuning off reads ahead by other means, such as the workers of a
    `keras.utils.PyDataset`, which stop with the epoch and must not be asked for more then.
    """
    options = dataset.options()
    injected = options.experimental_optimization.inject_prefetch
    return options.autotune.enabled is not False and injected is not False


def draws_when_begun(dataset: tf.data.Dataset) -> bool:
    """Whether each iterator draws random numbers from a state of the data set when it is made.

    So do those of `shuffle`: an iterator that nobody reads changes the order of the next one.
    """
    waiting, seen = [dataset], set()
    while waiting:
        each = waiting.pop()
        if any(word in type(each).__name__ for word in ("Shuffle", "Random")):
            return True
        if id(each) not in seen:
            seen.add(id(each))
            waiting.extend(private.dataset_inputs(each))
    return False
