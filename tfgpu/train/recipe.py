"""Fills in the settings a user left open, and makes Keras' optimizer from them.

The defaults are two measured recipes for small images, told apart by the size of the
training split; `experiments/` has the figures. A task may have defaults of its own. A setting given
by the user always wins.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpu.cli.settings import as_typed
from tfgpu.errors import RequestError
from tfgpu.train.settings import TrainSettings

if TYPE_CHECKING:
    import keras

    from tfgpu.data.augment import Transformation
    from tfgpu.data.inputs import ClassWeights
    from tfgpu.tasks.loading import Dataset
    from tfgpu.tasks.task import Task

SMALL = 10_000
"""Training sets below this many examples get the recipe for small ones."""

# Executions of this many steps meet the host a few times a second: often enough for a
# live display and a prompt Ctrl-C, seldom enough to cost nothing.
STEPS_PER_EXECUTION_CPU = 16
STEPS_PER_EXECUTION_GPU = 64


class Resolved(TrainSettings):
    """A `TrainSettings` in which nothing is left open but `run_dir` and what None turns off."""

    steps_per_execution: int
    model: str
    augment: str
    batch_size: int
    epochs: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    lr_schedule: str
    warmup_epochs: float


_OF_OPTIMIZER = ("learning_rate", "momentum", "weight_decay")
"""Defaults of a task that go with its optimizer."""


def resolve_for(config: TrainSettings, data: Dataset, *, replicas: int, on_gpu: bool) -> Resolved:
    """`resolve` for the task of a data set.

    Raises:
        RequestError: What `resolve` refuses, or a setting has no meaning for the task.
    """
    from tfgpu.tasks.options import check_recipe, refuse_others

    task, count = data.task, data.train.num_examples
    refuse_others(config.to_json(), task)
    defaults = task.recipe(data.spec, count)
    check_recipe(task, defaults)
    return resolve(
        config,
        num_examples=count,
        replicas=replicas,
        on_gpu=on_gpu,
        model=next(iter(task.models)),
        defaults=defaults,
        augmentations=tuple(task.augment),
    )


def resolve(
    config: TrainSettings,
    *,
    num_examples: int,
    replicas: int,
    on_gpu: bool,
    model: str = "lenet",
    defaults: Mapping[str, Any] | None = None,
    augmentations: tuple[str, ...] = ("crop",),
) -> Resolved:
    """Decides every setting that depends on the data and the devices.

    Args:
        config: As the user gave it.
        num_examples: Training examples, without those of validation.
        replicas: Over all workers.
        on_gpu: Whether they are GPUs.
        model: What is trained where nothing is asked for.
        defaults: Of the task, for settings that are left open.
        augmentations: That the task has.

    Returns:
        The same config with the open settings decided.

    Raises:
        RequestError: The batch is larger than the training set or does not divide among
            the replicas.
    """
    small = num_examples < SMALL
    own = dict(defaults or {})
    own |= own.pop("of_model", {}).get(config.model or model, {})
    optimizer = config.optimizer or own.get("optimizer", "sgd")
    if optimizer != own.get("optimizer", "sgd"):
        own = {name: value for name, value in own.items() if name not in _OF_OPTIMIZER}
    sgd = optimizer == "sgd"
    batch_size = config.batch_size
    # With fewer examples than replicas some of them have none.
    most = max(num_examples // replicas, 1) * replicas
    if batch_size is None:
        wanted = own.get("batch_size", 32 if small else 128)
        batch_size = min(math.ceil(wanted / replicas) * replicas, most)
    elif batch_size > most:
        among = f" over {replicas} replicas" if replicas > 1 else ""
        raise RequestError(
            f"--batch_size={batch_size} is larger than the training set of {num_examples} "
            f"examples; use at most {most}{among}"
        )
    elif batch_size % replicas:
        below = batch_size // replicas * replicas
        near = [str(near) for near in (below, below + replicas) if 0 < near <= most]
        raise RequestError(
            f"--batch_size={batch_size} does not divide among {replicas} replicas; use "
            f"{' or '.join(near)}"
        )
    epochs = config.epochs or own.get("epochs", 40 if small else 6)
    if config.unfreeze_at is not None and config.unfreeze_at > epochs:
        raise RequestError(
            f"--unfreeze_at={config.unfreeze_at} is after the last of {epochs} epochs; name one "
            "of them, or leave it out to keep the layers frozen"
        )
    steps = math.ceil(num_examples / batch_size)
    together = config.steps_per_execution
    if together == "auto":
        together = min(steps, STEPS_PER_EXECUTION_GPU if on_gpu else STEPS_PER_EXECUTION_CPU)
    learning_rate = config.learning_rate
    if learning_rate is None:
        learning_rate = own.get("learning_rate", (0.02 if small else 0.06) if sgd else 1e-3)
    warmup = config.warmup_epochs
    if warmup is None:
        warmup = min(own.get("warmup_epochs", epochs / 5), epochs)
    momentum = config.momentum
    if momentum is None:
        momentum = own.get("momentum", 0.9 if sgd else 0.0)
    weight_decay = config.weight_decay
    if weight_decay is None:
        weight_decay = 0.01 if sgd else 0.004 if optimizer == "adamw" else 0.0
        weight_decay = own.get("weight_decay", weight_decay)
    # A small set is soon learnt by heart; shifts are harmless to digits, mirroring is not.
    shifted = "crop" if small and "crop" in augmentations else "none"
    decided = dict(
        model=config.model or model,
        batch_size=batch_size,
        epochs=epochs,
        steps_per_execution=together,
        optimizer=optimizer,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        lr_schedule=config.lr_schedule or own.get("lr_schedule", "cosine"),
        warmup_epochs=warmup,
        augment=config.augment or own.get("augment", shifted),
    )
    return Resolved(**config.to_json() | decided)


def check_updates(config: Resolved, *, num_examples: int) -> None:
    """Refuses a training in which no weight would be updated.

    Args:
        config: What `resolve` returned.
        num_examples: Training examples.

    Raises:
        RequestError: All its steps are too few for a single update.
    """
    steps = config.epochs * math.ceil(num_examples / config.batch_size)
    if config.gradient_accumulation_steps > steps:
        raise RequestError(
            f"--gradient_accumulation_steps={config.gradient_accumulation_steps} is more than the "
            f"{steps} steps of all {config.epochs} epochs, so no weight would ever be updated; "
            "use fewer, a smaller --batch_size or more --epochs"
        )


def augmentations(config: Resolved) -> tuple[str, ...]:
    """The names in `--augment`, in order; () for none."""
    return () if config.augment == "none" else tuple(config.augment.split(","))


def transformations(config: Resolved, task: Task) -> tuple[Transformation, ...]:
    """What `--augment` asks for."""
    return tuple(task.augment[name] for name in augmentations(config))


def class_weights(config: Resolved, data: Dataset) -> ClassWeights | None:
    """What `--class_weight` asks for: the weight of each class, from the training labels alone.

    "balanced" is examples / (classes * examples of the class), after G. King and L. Zeng, "Logistic
    Regression in Rare Events Data", Political Analysis 9(2), 2001, as scikit-learn has it.

    Raises:
        RequestError: The labels are not a class for each example.
        DataError: A record is damaged.
    """
    from tfgpu.data.inputs import ClassWeights

    if config.class_weight == "none":
        return None
    y = data.train.element_spec[1]
    if isinstance(y, dict) or y.shape.rank != 0 or not y.dtype.is_integer or not data.class_names:
        raise RequestError(
            f"--class_weight={config.class_weight} needs one class for each example, which the "
            f"task {data.task.name} does not have; leave it out"
        )
    counts = np.bincount(data.train.load_y(), minlength=len(data.class_names))
    # Of a class without examples nothing is weighed.
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return ClassWeights(tuple(weights.tolist()))


def make_schedule(
    config: Resolved, *, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """The learning rate as a function of the optimizer's updates.

    Args:
        config: What `resolve` returned.
        steps_per_epoch: Batches in an epoch.

    Returns:
        A schedule of Keras' own, or the rate itself when it is constant from the start.
    """
    from tfgpu.train.schedules import InTurn, warm_up

    def phase(rate: float, epochs: int) -> Any:
        """A warm-up and a schedule of that many epochs, with the same share of warm-up in each."""
        updates = steps_per_epoch * epochs // config.gradient_accumulation_steps
        warmup = config.warmup_epochs * epochs / config.epochs
        warmup_updates = round(warmup * steps_per_epoch / config.gradient_accumulation_steps)
        return warm_up(
            config.lr_schedule,
            peak=rate,
            warmup_updates=min(warmup_updates, updates),
            updates=max(updates, 1),
        )

    if config.unfreeze_at is None:
        return phase(config.learning_rate, config.epochs)
    frozen_epochs = config.unfreeze_at - 1
    return InTurn(
        phase(config.learning_rate, frozen_epochs),
        phase(second_rate(config), config.epochs - frozen_epochs),
        steps_per_epoch * frozen_epochs // config.gradient_accumulation_steps,
    )


def second_rate(config: Resolved) -> float:
    """The highest rate after the thaw that `--unfreeze_at` asks for."""
    return config.unfreeze_learning_rate or config.learning_rate / 10


def make_optimizer(
    config: Resolved, *, steps_per_epoch: int, rates: Sequence[float] = ()
) -> keras.optimizers.Optimizer:
    """Keras' optimizer with every setting of `config` that concerns it.

    Call it in the strategy's scope.

    Args:
        config: What `resolve` returned.
        steps_per_epoch: Batches in an epoch.
        rates: What the learning rate of each variable is multiplied by; () for one for all.
    """
    import keras

    from tfgpu.train.fine_tuning import with_rates

    settings: dict[str, Any] = {
        "learning_rate": make_schedule(config, steps_per_epoch=steps_per_epoch),
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_norm,
    }
    if config.optimizer == "sgd":
        # Nesterov's form is never worse than plain momentum here, and the recipes use it.
        settings |= {"momentum": config.momentum, "nesterov": config.momentum > 0}
    elif config.momentum:
        settings["momentum"] = config.momentum
    if config.ema_momentum is not None:
        settings |= {"use_ema": True, "ema_momentum": config.ema_momentum}
    if config.gradient_accumulation_steps > 1:
        settings["gradient_accumulation_steps"] = config.gradient_accumulation_steps
    optimizer = keras.optimizers.get({"class_name": config.optimizer, "config": settings})
    return with_rates(optimizer, rates) if rates else optimizer


def make_loss(config: Resolved, data: Dataset, model: keras.Model) -> Any:
    """The loss of a task, which has to give a value for each example.

    Args:
        config: What `resolve` returned.
        data: With the task.
        model: What `build_checked` returned.

    Raises:
        RequestError: It gives something else.
    """
    import tensorflow as tf

    loss = data.task.loss(data.spec, config.to_json())
    y, outputs = data.train.element_spec[1], getattr(model, "output_shape", None)
    if (
        not isinstance(y, Mapping)
        and isinstance(outputs, tuple)
        and None not in outputs[1:]
        and hasattr(loss, "call")
    ):
        with tf.device("CPU"):
            shape = tf.shape(
                loss.call(tf.zeros((2, *y.shape), tf.float32), tf.zeros((2, *outputs[1:])))
            )
        if shape.numpy().tolist()[:1] != [2]:
            raise RequestError(
                f"the loss of the task {data.task.name} gives a value of shape "
                f"{tuple(shape.numpy().tolist())} for two examples: it must give one for each, so "
                "that batches and replicas add up; an x or y that is one number has the shape (1,)"
            )
    return loss


def make_callbacks(config: Resolved) -> list[keras.callbacks.Callback]:
    """Keras' callbacks that settings ask for.

    Args:
        config: What `resolve` returned.
    """
    import keras

    from tfgpu.train.moving_average import SwapEMAWeights

    callbacks: list[keras.callbacks.Callback] = []
    if config.ema_momentum is not None:
        # The run ends with the average, so that is what is validated, and what early stopping
        # compares and restores.
        callbacks.append(SwapEMAWeights())
    if config.early_stopping is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", patience=config.early_stopping, restore_best_weights=True
            )
        )
    return callbacks


def check_builder(config: TrainSettings, builder: Callable[..., keras.Model]) -> dict[str, Any]:
    """The arguments of a builder that settings are for.

    Args:
        config: For `width` and `depth`.
        builder: What `find_builder` returned.

    Returns:
        Those that are set, by name.

    Raises:
        RequestError: The builder does not take one.
    """
    wanted = {n: value for n in ("width", "depth") if (value := getattr(config, n)) is not None}
    for name, value in wanted.items():
        if not takes(builder, name):
            raise RequestError(
                f"--{name}={as_typed(value)}: --model={config.model} takes no argument "
                f"{name!r}; give it one, or leave --{name} out"
            )
    return wanted


def takes(builder: Callable[..., Any], name: str) -> bool:
    """Whether a builder takes an argument of this name."""
    parameters = inspect.signature(builder).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def build_model(
    config: TrainSettings, builder: Callable[..., keras.Model], **arguments: Any
) -> keras.Model:
    """Calls the function that builds the model.

    Args:
        config: For `width` and `depth`, which it gets when they are set.
        builder: What `find_builder` returned.
        **arguments: What the task has for it: `image_shape` and `num_classes`, for images.

    Returns:
        What the builder made, whatever that is.

    Raises:
        RequestError: It does not take what is set, or it fails.
    """
    wanted = check_builder(config, builder)
    try:
        return builder(**arguments, **wanted)
    except Exception as error:
        what = ""
        if arguments.keys() == {"image_shape", "num_classes"}:
            shape = "x".join(map(str, arguments["image_shape"]))
            what = f" for images of {shape} and {arguments['num_classes']} classes"
        raise RequestError(
            f"--model={config.model} cannot be built{what}: {error}; it is called with "
            f"{' and '.join([*arguments, *wanted])}"
        ) from error


def rematerialize(config: TrainSettings, model: keras.Model) -> None:
    """Has a model compute activations again in the backward pass, where `--remat` asks for it.

    Args:
        config: The settings.
        model: What the builder made.

    Raises:
        RequestError: The model cannot.
    """
    from tfgpu.engine.overrides import is_own
    from tfgpu.models.segments import segments

    if not config.remat:
        return
    try:
        if is_own(model, "train_step"):
            raise ValueError("it has a train_step of its own")
        model.tfgpu_segments = segments(model)
    except ValueError as error:
        raise RequestError(
            f"--remat: --model={config.model} cannot be computed in segments: {error}; leave "
            "--remat out"
        ) from None


def build_checked(
    config: TrainSettings, builder: Callable[..., keras.Model], data: Dataset
) -> keras.Model:
    """Calls the function that builds the model, and checks what it made.

    Its initial values depend on the seed alone: a data set that the first run prepares, and the
    next only reads, draws random numbers too.

    Args:
        config: For `seed`, `width` and `depth`.
        builder: What `find_builder` returned.
        data: What the model is for.

    Raises:
        RequestError: It cannot be built, or is no tfgpu model for the task.
    """
    import keras

    from tfgpu.artifacts.trained_run import with_batch
    from tfgpu.engine.model import ReplicaTrainer

    keras.utils.set_random_seed(config.seed)
    model = build_model(config, builder, **data.task.arguments(data.spec))
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise RequestError(f"--model={config.model} returned {kind}; return a tfgpu.Model")
    if not isinstance(model, ReplicaTrainer):
        raise RequestError(
            f"--model={config.model} returned a {type(model).__module__}.{type(model).__name__}; "
            "return a tfgpu.Model or tfgpu.Sequential, which take the same arguments"
        )
    rematerialize(config, model)
    outputs = data.task.outputs(data.spec)
    if outputs is None or not model.built:
        return model
    expected = with_batch(outputs)
    if (found := getattr(model, "output_shape", expected)) != expected:
        raise RequestError(
            f"--model={config.model} gives outputs of shape {found}; {config.dataset} needs "
            f"{'logits' if data.class_names else 'outputs'} of shape {expected}"
        )
    return model
