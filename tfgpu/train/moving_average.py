"""The moving average of the weights, kept so that a training can go on after its last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfgpu.engine import keras_internals as private


class SwapEMAWeights(keras.callbacks.SwapEMAWeights):
    """Keras' callback, swapping at the ends of epochs, without losing the weights at the last one.

    `fit` ends by assigning the averages to the weights, so Keras' callback overwrites the averages
    with the weights, which are the averages by then, in the last epoch. A backup that is made after
    that has no weights left to train on. Here `closing` does so behind the backup.

    Attributes:
        closing: The callback to put behind `tfgpu.BackupAndRestore`.
    """

    def __init__(self) -> None:
        super().__init__(swap_on_epoch=True)
        self.closing = _Closing(self)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if not private.averages_in_model(self):
            private.swap_averages(self)
            private.averages_in_model.set(self, True)


class _Closing(keras.callbacks.Callback):
    def __init__(self, swap: SwapEMAWeights):
        super().__init__()
        self._swap = swap

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        # Resumed behind its last epoch, `fit` has no epoch to end.
        if (private.initial_epoch(self.model) or 0) >= self.params["epochs"]:
            self._finalize()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if epoch + 1 == self.params["epochs"] or self.model.stop_training:
            self._finalize()

    def _finalize(self) -> None:
        if private.averages_in_model(self._swap):
            private.finalize_averages(self._swap)
