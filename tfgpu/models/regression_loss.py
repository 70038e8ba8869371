"""Loss and R² of a regression whose target has a unit and a scale of its own."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfgpu")
class StandardizedSquaredError(keras.losses.Loss):
    """Squared error over the variance of the target: about 1 for a model that says the mean.

    A target in its own unit may be of any size, and with it the gradients, which half precision and
    clipping do not take.

    Args:
        scale: The target's standard deviation.
    """

    def __init__(self, scale: float, name: str = "standardized_squared_error", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.scale = scale

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example: (n, 1) and (n, 1) to (n,)."""
        y_pred = ops.convert_to_tensor(y_pred)
        error = (ops.cast(y_true, y_pred.dtype) - y_pred) / self.scale
        return ops.mean(ops.square(error), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {"scale": self.scale}


@keras.saving.register_keras_serializable(package="tfgpu")
class R2(keras.metrics.Metric):
    """Coefficient of determination: 1 minus the squared error over that of the targets' mean.

    Keras' `R2Score` sums squares of the target as it is, which in float32 loses the variance of a
    target that is far from 0, such as a year. Here they are taken from `offset`.

    Args:
        scale: About the target's standard deviation.
        offset: About its mean.
        name: Of the metric.
        dtype: Of the sums.
    """

    def __init__(self, scale: float, offset: float, name: str = "r2", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.scale, self.offset = scale, offset
        self._count, self._sum, self._squares, self._errors = (
            self.add_variable((), "zeros", name=name)
            for name in ("count", "sum", "squares", "errors")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: (n, 1) and (n, 1), with weights (n,)."""
        y_true = ops.cast(y_true, self.dtype)
        target = ops.reshape((y_true - self.offset) / self.scale, [-1])
        error = ops.reshape((ops.cast(y_pred, self.dtype) - y_true) / self.scale, [-1])
        weight = ops.ones_like(target)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), [-1])
        self._count.assign_add(ops.sum(weight))
        self._sum.assign_add(ops.sum(weight * target))
        self._squares.assign_add(ops.sum(weight * ops.square(target)))
        self._errors.assign_add(ops.sum(weight * ops.square(error)))

    def result(self) -> Any:
        """1 at best; 0 for targets that do not vary."""
        mean = ops.divide_no_nan(self._sum, self._count)
        total = self._squares - self._count * ops.square(mean)
        return ops.where(
            total > 0, 1 - ops.divide_no_nan(self._errors, total), ops.zeros_like(total)
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "scale": self.scale, "offset": self.offset}
