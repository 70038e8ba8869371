"""Muon for filters and SGD for the rest, in one optimizer, each group with a rate of its own.

`keras.optimizers.Muon` takes Adam for what is no matrix, one rate for all, and decays weights apart
from the gradient; recipes that were published for PyTorch need what is here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of `orthogonalised`: a, b and c in a x + b x^3 + c x^5, of which each step takes one."""


@dataclasses.dataclass(frozen=True)
class Group:
    """What an optimizer does with some of the variables.

    Attributes:
        pattern: A regular expression that is searched for in the path of a variable; the first
            group whose pattern is found takes the variable.
        learning_rate: A number, or Keras' schedule of the steps of the optimizer.
        momentum: Of Nesterov's kind, in [0, 1).
        weight_decay: Times the variable, added to its gradient ("coupled"); without `muon`.
        muon: Whether to make each update orthogonal, of a kernel (..., in, out) as the matrix of
            all that comes before `out` by `out`.
    """

    pattern: str
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule
    momentum: float
    weight_decay: float = 0.0
    muon: bool = False

    def __post_init__(self) -> None:
        if self.muon and self.weight_decay:
            raise ValueError(
                f"group {self.pattern!r}: Muon sets the norm of a kernel, so a weight_decay of "
                f"{self.weight_decay:g} would do nothing; leave it at 0"
            )


@keras.saving.register_keras_serializable(package="tfgpu")
class MuonSGD(keras.optimizers.Optimizer):
    """Muon and SGD with Nesterov momentum, as PyTorch's optimizers compute them.

    With the momentum m of the group and its rate r, for a variable w and its gradient g:

        SGD     g <- g + decay w;  b <- m b + g;  w <- w - r (g + m b)
        Muon    b <- m b + g;  w <- w sqrt(out) / |w|;  w <- w - r orthogonalised(g + m b)

    so the rate is outside of the buffer, where Keras' SGD has it inside, and the decay part of the
    gradient. Source: `torch.optim.SGD`; K. Jordan et al., "Muon: An optimizer for hidden layers in
    neural networks", 2024, in the variant of the CIFAR-10 speed record, which sets the norm of each
    kernel before its update.

    Gradients are not clipped, accumulated or averaged. Several replicas need a `tfgpu.Model`,
    which sums the gradients before.

    Args:
        groups: Each variable goes to the first one that fits; see `Group`.
        name: Of the optimizer.
    """

    def __init__(self, groups: Sequence[Group | dict[str, Any]], name: str = "muon_sgd"):
        made = [_group(each) if isinstance(each, dict) else each for each in groups]
        if not made:
            raise ValueError("MuonSGD needs one group or more")
        rate = made[0].learning_rate
        super().__init__(float(rate) if isinstance(rate, (int, float)) else rate, name=name)
        self.groups = made
        self._buffers: dict[int, Any] = {}
        self._group_of: dict[int, Group] = {}

    def build(self, variables: list[Any]) -> None:
        """Makes a momentum buffer for each variable.

        Raises:
            ValueError: A variable is in no group.
        """
        if self.built:
            return
        super().build(variables)
        for variable in variables:
            found = [group for group in self.groups if re.search(group.pattern, variable.path)]
            if not found:
                patterns = ", ".join(repr(group.pattern) for group in self.groups)
                raise ValueError(f"variable {variable.path!r} is in none of the groups {patterns}")
            self._group_of[id(variable)] = found[0]
            self._buffers[id(variable)] = self.add_variable_from_reference(variable, "momentum")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates variables.

        Args:
            grads: One a variable; None leaves its variable as it is.
            trainable_variables: Those that the optimizer was built with, or some of them.
        """
        if trainable_variables is None:
            raise ValueError("MuonSGD.apply needs the variables beside the gradients")
        variables = list(trainable_variables)
        if not self.built:
            self.build(variables)
        rates = {id(group): self._rate(group) for group in self.groups}
        filters = []
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is None:
                continue
            group, buffer = self._group_of[id(variable)], self._buffers[id(variable)]
            value = tf.convert_to_tensor(variable)
            gradient = tf.cast(gradient, value.dtype)
            if group.weight_decay:
                gradient += group.weight_decay * value
            moved = group.momentum * tf.convert_to_tensor(buffer) + gradient
            self.assign(buffer, moved)
            gradient += group.momentum * moved
            if group.muon:
                filters.append((variable, value, gradient, rates[id(group)]))
            else:
                self.assign(variable, value - rates[id(group)] * gradient)
        with tf.name_scope("orthogonalised"):
            updates = orthogonalised([gradient for _, _, gradient, _ in filters])
        for (variable, value, _, rate), update in zip(filters, updates, strict=True):
            norm = tf.sqrt(tf.reduce_sum(tf.square(value)))
            value *= math.sqrt(value.shape[-1]) / norm
            self.assign(variable, value - rate * update)
        self.iterations.assign_add(1)

    def _rate(self, group: Group) -> Any:
        rate = group.learning_rate
        if isinstance(rate, (int, float)):
            return rate
        return rate(tf.convert_to_tensor(self.iterations))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        groups = [
            dataclasses.asdict(group)
            | {
                "learning_rate": keras.saving.serialize_keras_object(group.learning_rate),
            }
            for group in self.groups
        ]
        return {"groups": groups, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MuonSGD:
        """The optimizer of a `get_config`."""
        return cls(**config)


def _group(config: dict[str, Any]) -> Group:
    rate = keras.saving.deserialize_keras_object(config["learning_rate"])
    return Group(**(config | {"learning_rate": rate}))


def orthogonalised(
    kernels: Sequence[tf.Tensor], *, steps: int = 3, epsilon: float = 1e-7
) -> list[tf.Tensor]:
    """Moves the singular values of matrices towards 1, by Newton and Schulz' iteration in bfloat16.

    With `COEFFICIENTS` and three steps they end between about 0.5 and 1.5, not at 1: the slope at 0
    was chosen to be large instead. All matrices are filled up with zeros to one shape, which
    changes no other entry of them, and multiplied as one batch: nine products in place of nine
    for each.

    Args:
        kernels: (..., in, out) each, taken as (product of what comes before, out).
        steps: Of the iteration.
        epsilon: Added to the Frobenius norm, which is divided by first.

    Returns:
        Tensors of the shapes and dtypes of `kernels`.
    """
    if not kernels:
        return []
    a, b, c = COEFFICIENTS

    def combined(first: float, x: tf.Tensor, second: float, y: tf.Tensor) -> tf.Tensor:
        # In bfloat16 the coefficients themselves would be rounded, which doubles the error.
        return tf.cast(
            first * tf.cast(x, tf.float32) + second * tf.cast(y, tf.float32), tf.bfloat16
        )

    shapes = [(math.prod(kernel.shape[:-1]), kernel.shape[-1]) for kernel in kernels]
    rows = max(max(shape) for shape in shapes)
    columns = max(min(shape) for shape in shapes)
    padded = []
    for kernel, shape in zip(kernels, shapes, strict=True):
        x = tf.cast(tf.reshape(kernel, shape), tf.bfloat16)
        if shape[0] < shape[1]:
            x = tf.transpose(x)
        norm = tf.sqrt(tf.reduce_sum(tf.square(tf.cast(x, tf.float32)))) + epsilon
        x = tf.cast(tf.cast(x, tf.float32) / norm, tf.bfloat16)
        padded.append(tf.pad(x, [[0, rows - max(shape)], [0, columns - min(shape)]]))
    x = tf.stack(padded)
    for _ in range(steps):
        gram = tf.matmul(x, x, transpose_a=True)
        x = combined(a, x, 1.0, tf.matmul(x, combined(b, gram, c, tf.matmul(gram, gram))))
    results = []
    for position, (kernel, shape) in enumerate(zip(kernels, shapes, strict=True)):
        found = x[position, : max(shape), : min(shape)]
        if shape[0] < shape[1]:
            found = tf.transpose(found)
        results.append(tf.cast(tf.reshape(found, kernel.shape), kernel.dtype))
    return results
