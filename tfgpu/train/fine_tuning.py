"""Training that begins with weights from a file: frozen layers, their thaw, rates by depth."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tfgpu.artifacts.weights_file import take_weights
from tfgpu.engine import keras_internals as private
from tfgpu.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from tfgpu.train.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the settings of fine-tuning made of a model.

    Attributes:
        notes: Lines for the user.
        callbacks: That thaw what is frozen.
        variables: That the optimizer is to be built for, where they are more than those that are
            trained at first; None: those.
        rates: What the learning rate of each is multiplied by; () for one for all.
    """

    notes: tuple[str, ...] = ()
    callbacks: tuple[keras.callbacks.Callback, ...] = ()
    variables: tuple[Any, ...] | None = None
    rates: tuple[float, ...] = ()


def prepare(model: keras.Model, config: TrainSettings) -> Prepared:
    """Gives a model its weights and freezes its layers, as settings ask.

    Call it in the strategy's scope, before the model is compiled.

    Args:
        model: What the builder made.
        config: The settings.

    Raises:
        RequestError: The model is not built yet, or what `take_weights` and `freeze` refuse.
        ModelFileError: The weights cannot be used.
    """
    names = [name for name in ("weights", "freeze") if getattr(config, name) is not None]
    names += ["layer_decay"] if config.layer_decay < 1 else []
    if not names:
        return Prepared()
    if not model.built:
        raise RequestError(
            f"--{names[0]}={getattr(config, names[0])}: --model={config.model} has no weights "
            "before it sees data; build a functional model, or call build() in the function"
        )
    notes = []
    if config.weights is not None and weights_are_needed(config):
        taken = take_weights(model, config.weights)
        notes.append(f"weights          {taken.described(config.weights)}")
    every = list(model.trainable_variables)
    frozen = freeze(model, config.freeze) if config.freeze is not None else []
    if frozen:
        notes.append(described(model, frozen, config))
    thaws = config.unfreeze_at is not None
    variables = every if thaws else list(model.trainable_variables)
    decays = config.layer_decay < 1
    return Prepared(
        notes=tuple(notes),
        callbacks=(Unfreeze(frozen, config.unfreeze_at),) if config.unfreeze_at else (),
        variables=tuple(every) if thaws else None,
        rates=tuple(rates_by_depth(model, variables, config.layer_decay)) if decays else (),
    )


def weights_are_needed(config: TrainSettings) -> bool:
    """Whether `--weights` is to be read: not where a checkpoint of the run has all weights."""
    checkpoints = Path(config.run_dir).expanduser() / "checkpoints" if config.run_dir else None
    return checkpoints is None or not checkpoints.is_dir() or not any(checkpoints.iterdir())


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers that have weights, in the order of computation, those of models within too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        elif layer.weights:
            yield layer


def freeze(model: keras.Model, patterns: str) -> list[keras.layers.Layer]:
    """Freezes the layers that patterns name.

    A frozen layer keeps its weights, and a frozen BatchNormalization normalises by its moving
    statistics, which it keeps too.

    Args:
        model: Built, not compiled.
        patterns: As `fnmatch` has them, joined by commas, in order; those that begin with "!" take
            out again what they match.

    Returns:
        The layers that are frozen now.

    Raises:
        RequestError: A pattern matches nothing, or nothing is left to train.
    """
    layers = [layer for layer in layers_of(model) if layer.trainable_weights]
    chosen: set[int] = set()
    for pattern in patterns.split(","):
        name = pattern.removeprefix("!")
        matched = {id(layer) for layer in layers if fnmatch.fnmatchcase(layer.name, name)}
        if not matched:
            names = [layer.name for layer in layers]
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise RequestError(
                f"--freeze={patterns}: {name!r} matches no layer with weights to train"
                f"{did_you_mean(name, names)}; this model has {shown}"
            )
        chosen = chosen - matched if pattern != name else chosen | matched
    frozen = [layer for layer in layers if id(layer) in chosen]
    if len(frozen) == len(layers):
        raise RequestError(
            f"--freeze={patterns} leaves nothing to train; take the last layers out again, as in "
            f"--freeze='*,!{layers[-1].name}'"
        )
    for layer in frozen:
        layer.trainable = False
    return frozen


def described(
    model: keras.Model, frozen: Sequence[keras.layers.Layer], config: TrainSettings
) -> str:
    """A line for the user: how much is frozen, and until when."""
    count = sum(layer.count_params() for layer in frozen)
    until = ""
    if config.unfreeze_at is not None:
        until = f", until epoch {config.unfreeze_at}"
    return (
        f"frozen           {len(frozen)} layers with {count:,} of {model.count_params():,} "
        f"parameters{until}"
    )


class Unfreeze(keras.callbacks.Callback):
    """Makes frozen layers trainable when an epoch begins.

    Which epochs have them frozen follows from the number of the epoch alone, so a run that is
    continued thaws where one that was never stopped does. The optimizer knows all weights from
    the start.

    Args:
        layers: Frozen.
        epoch: The first that trains them, counted from 1.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], epoch: int):
        super().__init__()
        self._layers = list(layers)
        self._epoch = epoch
        self._thawed = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Thaws, and has the step made anew."""
        if self._thawed or epoch + 1 < self._epoch:
            return
        for layer in self._layers:
            layer.trainable = True
        self.model.make_train_function(force=True)
        self._thawed = True


def rates_by_depth(model: keras.Model, variables: Sequence[Any], decay: float) -> list[float]:
    """What the learning rate of each variable is multiplied by: less for layers further from the
    output.

    The last layer has 1, the one before it `decay`, and so on. A layer whose weights are all
    vectors, as a normalisation's are, has the rate of the layer before it.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification",
    ACL 2018, section 3.2 (discriminative fine-tuning, there with a decay of 1 / 2.6).

    Args:
        model: Built.
        variables: Trainable.
        decay: In (0, 1].

    Returns:
        A factor for each variable.
    """
    depths: dict[int, int] = {}
    depth = -1
    for layer in layers_of(model):
        if any(len(weight.shape) > 1 for weight in layer.weights):
            depth += 1
        for weight in layer.weights:
            depths[id(weight)] = max(depth, 0)
    last = max(depth, 0)
    return [decay ** (last - depths.get(id(variable), last)) for variable in variables]


class LayerRates:
    """A part of an optimizer by which each variable has a learning rate of its own.

    Put it before the Keras class. Weight decay, which Keras multiplies by the learning rate, is
    multiplied by the variable's own.
    """

    # Of the Keras class.
    learning_rate: Any
    weight_decay: float | None

    tfgpu_rates: tuple[float, ...] = ()
    tfgpu_weight_decay: float | None = None

    def set_rates(self, rates: Sequence[float]) -> None:
        """Says the factor of each variable, in the order in which the optimizer is built."""
        self.tfgpu_rates = tuple(rates)
        # Decoupled, before the step, as Keras has it; but Keras knows one rate alone.
        self.tfgpu_weight_decay, self.weight_decay = self.weight_decay, None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See `keras.optimizers.Optimizer.update_step`."""
        factor = self.tfgpu_rates[private.variable_index(self, variable)]
        rate = keras.ops.cast(learning_rate, variable.dtype) * factor
        if self.tfgpu_weight_decay:
            self.assign_sub(variable, variable * rate * self.tfgpu_weight_decay)  # type: ignore[attr-defined]
        super().update_step(gradient, variable, rate)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """The Keras class's, and the factors."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return config | {
            "weight_decay": self.tfgpu_weight_decay,
            "layer_rates": list(self.tfgpu_rates),
        }


def with_rates(
    optimizer: keras.optimizers.Optimizer, rates: Sequence[float]
) -> keras.optimizers.Optimizer:
    """The same optimizer, with a learning rate for each variable.

    Args:
        optimizer: Of Keras, not built.
        rates: A factor for each variable, in the order in which it will be built.
    """
    kind: Any = type(optimizer)
    made = type(kind.__name__, (LayerRates, kind), {})
    found: Any = made.from_config(optimizer.get_config())  # type: ignore[attr-defined]
    found.set_rates(rates)
    return found
