"""Random cases: what is trained, on what data, and how it is fed.

A case is a list of plain values, drawn from (seed, index) alone. Nothing here imports TensorFlow,
so that the rules can be counted over thousands of cases; `builders` makes models of them, and
`feeding` data.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np


class Network(NamedTuple):
    """What the generator has to know of a network."""

    inputs: str  # "vector", "image", "sequence", "tokens" or "two"
    outputs: str  # "vector", "steps", "pixels", "dict" or "list"
    penalty: bool = False  # Whether layers add losses of their own.


NETWORKS = {
    "dense": Network("vector", "vector"),
    "residual": Network("vector", "vector"),
    "conv": Network("image", "vector"),
    "pixels": Network("image", "pixels"),
    "lstm": Network("sequence", "vector"),
    "gru": Network("sequence", "vector"),
    "tagger": Network("sequence", "steps"),
    "time_distributed": Network("sequence", "steps"),
    "embedding": Network("tokens", "vector"),
    "masked_lstm": Network("tokens", "vector"),
    "masked_tagger": Network("tokens", "steps"),
    "two_inputs": Network("two", "vector"),
    "two_outputs_dict": Network("vector", "dict"),
    "two_outputs_list": Network("vector", "list"),
    "add_loss": Network("vector", "vector", penalty=True),
    "activity_regularizer": Network("vector", "vector", penalty=True),
    "kernel_regularizer": Network("vector", "vector", penalty=True),
    "sequential": Network("vector", "vector"),
    "subclassed": Network("vector", "vector"),
    "compute_loss": Network("vector", "vector", penalty=True),
    "metric_of_rows": Network("vector", "vector"),
    "metric_of_batches": Network("vector", "vector"),
    "counter": Network("vector", "vector"),
    "constraint": Network("vector", "vector"),
    "frozen": Network("vector", "vector"),
}


class Optimizer(NamedTuple):
    """What the generator and the rules have to know of an optimizer."""

    learning_rate: float
    linear: bool = False  # Whether an update is linear in the gradient.
    counts: bool = False  # Whether an update depends on how many there were.


OPTIMIZERS = {
    "sgd": Optimizer(0.05, linear=True),
    "momentum": Optimizer(0.02, linear=True),
    "nesterov": Optimizer(0.02, linear=True),
    "adam": Optimizer(0.01, counts=True),
    "adamw": Optimizer(0.01, counts=True),
    "amsgrad": Optimizer(0.01, counts=True),
    "nadam": Optimizer(0.01, counts=True),
    "rmsprop": Optimizer(0.005),
    "centered_rmsprop": Optimizer(0.005),
    "adagrad": Optimizer(0.05),
    "adadelta": Optimizer(0.5),
    "adamax": Optimizer(0.01, counts=True),
    "ftrl": Optimizer(0.05),
    "adafactor": Optimizer(0.02, counts=True),
    "lion": Optimizer(0.003),
    "lamb": Optimizer(0.01, counts=True),
    "muon": Optimizer(0.01, counts=True),
}

LOSSES = {
    "regression": (
        "mean_squared_error",
        "mean_absolute_error",
        "huber",
        "log_cosh",
        "cosine_similarity",
        "function_of_rows",
        "function_of_batch",
        "own_class",
    ),
    "binary": ("binary_crossentropy", "binary_focal_crossentropy"),
    "classes": ("sparse_categorical_crossentropy",),
    "one_hot": ("categorical_crossentropy", "categorical_focal_crossentropy"),
}
# Plain Python functions, which take no reduction.
FUNCTIONS = ("function_of_rows", "function_of_batch")

METRICS = {
    "regression": ("mean_absolute_error", "mean_squared_error", "near", "cosine_similarity", "r2"),
    "binary": ("accuracy", "auc", "precision", "recall"),
    "classes": ("accuracy", "sparse_top_k", "sparse_categorical_crossentropy"),
    "one_hot": ("accuracy", "top_k", "categorical_crossentropy"),
}

CLIPS = {"clipnorm": 0.3, "clipvalue": 0.03, "global_clipnorm": 0.3}


@dataclasses.dataclass(frozen=True)
class Case:
    """One training with its evaluation and prediction, as plain values."""

    seed: int
    index: int
    # The model.
    network: str
    normalization: str  # "none", "batch", "synchronized", "layer", "group" or "unit"
    activation: str
    dropout: float
    # The loss.
    task: str  # A key of LOSSES: the kind of targets. Of two outputs, that of the first.
    loss: str
    from_logits: bool
    reduction: str | None  # None where the loss is a plain function.
    loss_weights: bool
    metrics: list[str]
    weighted_metrics: list[str]
    # The optimizer.
    optimizer: str
    learning_rate: float
    optimizer_options: dict[str, Any]
    schedule: str  # "none", "piecewise", "cosine" or "exponential"
    loss_scale: bool  # Whether a LossScaleOptimizer is around it.
    # The data.
    feeding: str
    rows: int
    batch_size: int
    epochs: int
    steps_per_epoch: int | None  # Where the data does not end.
    weights: str  # "none", "rows", "classes" or "elements" (a time step or a pixel)
    validation: str  # "none", "arrays", "dataset", "unknown" or "split"
    validation_rows: int
    validation_batch_size: int | None
    validation_freq: int
    test_rows: int
    test_batch_size: int
    # The execution.
    steps_per_execution: int
    jit_compile: bool
    run_eagerly: bool
    callback: str
    records_batches: bool
    second_round: bool  # Freezes a layer, compiles again with the same optimizer, fits again.

    def to_json(self) -> str:
        """The case as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote.

        Raises:
            ValueError: The text is no JSON, or its fields are not those of a case.
        """
        values = json.loads(text)
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not the fields of a case: {error}") from error

    @property
    def inputs(self) -> str:
        """Kind of the inputs: see `Network`."""
        return NETWORKS[self.network].inputs

    @property
    def outputs(self) -> str:
        """Kind of the outputs: see `Network`."""
        return NETWORKS[self.network].outputs

    @property
    def batches(self) -> int:
        """Batches of one pass over the training rows."""
        return -(-self.rows // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.steps_per_epoch or self.batches


def generate(seed: int, index: int) -> Case:
    """Draws case number `index` of `seed`.

    Args:
        seed: Seed of a sequence of cases.
        index: Place in the sequence. A case does not depend on those before it.

    Returns:
        The case. Combinations that stock Keras itself refuses are not drawn, as far as known.
    """
    rng = np.random.default_rng([seed, index])
    case: dict[str, Any] = {"seed": seed, "index": index}
    case |= _model(rng)
    case |= _loss(rng, case)
    case |= _optimizer(rng, case)
    case |= _data(rng, case)
    case |= _execution(rng, case)
    if NETWORKS[case["network"]].inputs == "tokens":
        # Stock Keras divides no gradient of an Embedding by a scale or a number of batches.
        case["loss_scale"] = False
        for option in ("loss_scale_factor", "gradient_accumulation_steps"):
            case["optimizer_options"].pop(option, None)
    return Case(**case)


def _choice(rng: np.random.Generator, *options: Any, p: list[float] | None = None) -> Any:
    """One of `options`, as it was given (numpy's own choice gives numpy's types)."""
    return options[int(rng.choice(len(options), p=p))]


def _maybe(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _model(rng: np.random.Generator) -> dict[str, Any]:
    network = _choice(rng, *NETWORKS)
    normalization = _choice(
        rng,
        *("none", "batch", "synchronized", "layer", "group", "unit"),
        p=[0.55, 0.06, 0.12, 0.12, 0.08, 0.07],
    )
    return {
        "network": network,
        "normalization": normalization,
        "activation": _choice(rng, "tanh", "relu", "gelu", "softplus"),
        "dropout": 0.3 if _maybe(rng, 0.06) else 0.0,
    }


def _loss(rng: np.random.Generator, case: dict[str, Any]) -> dict[str, Any]:
    network = NETWORKS[case["network"]]
    outputs = network.outputs
    if outputs in ("dict", "list"):
        tasks = ["regression"]
    elif outputs in ("steps", "pixels"):
        tasks = ["regression", "classes"]
    else:
        tasks = ["regression", "binary", "classes", "one_hot"]
    task = _choice(rng, *tasks)
    loss = _choice(rng, *LOSSES[task])
    reduction = None
    if loss not in FUNCTIONS:
        reductions = {
            "sum_over_batch_size": 0.5,
            "mean": 0.1,
            "sum": 0.15,
            "mean_with_sample_weight": 0.15,
            "none": 0.1,
        }
        if case["network"] == "compute_loss":
            # What it adds is a mean over the rows, as the rest has to be to be added up.
            reductions = {"sum_over_batch_size": 0.8, "mean": 0.2}
        elif network.penalty:
            reductions["none"] = 0  # Keras adds no scalars to a vector.
        total = sum(reductions.values())
        reduction = _choice(rng, *reductions, p=[p / total for p in reductions.values()])
    names = list(METRICS[task])
    if outputs == "pixels" and task == "classes":
        names.append("mean_iou")
    if outputs != "vector":
        names = [name for name in names if name != "r2"]
    chosen = [str(name) for name in rng.permutation(names)]
    count = int(rng.integers(0, 3))
    weighted = [name for name in chosen[count:] if name != "mean_iou"]
    return {
        "task": task,
        "loss": loss,
        "from_logits": _maybe(rng, 0.6),
        "reduction": reduction,
        "loss_weights": outputs in ("dict", "list") and _maybe(rng, 0.5),
        "metrics": chosen[:count],
        "weighted_metrics": weighted[: int(rng.integers(0, 2))],
    }


def _optimizer(rng: np.random.Generator, case: dict[str, Any]) -> dict[str, Any]:
    names = list(OPTIMIZERS)
    sparse = NETWORKS[case["network"]].inputs == "tokens"
    if sparse and _maybe(rng, 0.7):
        names = [name for name, traits in OPTIMIZERS.items() if traits.linear]
    name = _choice(rng, *names)
    options: dict[str, Any] = {}
    if _maybe(rng, 0.2):
        options["weight_decay"] = 0.02
    if _maybe(rng, 0.1 if sparse else 0.35):
        clip = _choice(rng, *CLIPS)
        options[clip] = CLIPS[clip]
    if _maybe(rng, 0.15):
        options |= {"use_ema": True, "ema_momentum": 0.8}
        if _maybe(rng, 0.5):
            options["ema_overwrite_frequency"] = 3
    if OPTIMIZERS[name].linear and not options and _maybe(rng, 0.15):
        options["gradient_accumulation_steps"] = 2
    loss_scale = not options and _maybe(rng, 0.12)
    if not loss_scale and _maybe(rng, 0.1):
        options["loss_scale_factor"] = 64.0
    learning_rate = OPTIMIZERS[name].learning_rate
    if case["reduction"] in ("sum", "none") and OPTIMIZERS[name].linear:
        # Such gradients grow with the batch, and with the time steps or pixels.
        learning_rate *= 0.02 if NETWORKS[case["network"]].outputs == "pixels" else 0.1
    return {
        "optimizer": name,
        "learning_rate": learning_rate,
        "optimizer_options": options,
        "schedule": _choice(
            rng, "none", "piecewise", "cosine", "exponential", p=[0.64, 0.12, 0.12, 0.12]
        ),
        "loss_scale": loss_scale,
    }


def _data(rng: np.random.Generator, case: dict[str, Any]) -> dict[str, Any]:
    feeding = _choice(
        rng,
        *("arrays", "dataset", "unknown", "repeat", "generator", "py_dataset", "train_on_batch"),
        p=[0.3, 0.2, 0.08, 0.12, 0.12, 0.1, 0.08],
    )
    batch_size = int(rng.integers(4, 13))
    batches = int(rng.integers(3, 6))
    rest = _choice(rng, 0, 1, int(rng.integers(1, batch_size)), p=[0.5, 0.15, 0.35])
    rows = batch_size * batches if rest == 0 else batch_size * (batches - 1) + rest
    task, outputs = case["task"], NETWORKS[case["network"]].outputs
    weights = ["none", "rows"]
    if outputs == "vector" and task != "regression" and feeding != "generator":
        weights.append("classes")  # Keras takes no class_weight with a Python generator.
    if outputs in ("steps", "pixels"):
        weights.append("elements")
    p = [0.55, 0.45] if len(weights) == 2 else [0.4, 0.3, 0.3]
    validation = "none"
    if feeding != "train_on_batch":
        validations = ["none", "arrays", "dataset", "unknown"]
        if feeding == "arrays" and outputs not in ("dict", "list"):
            validations.append("split")
        odds = np.array([0.5, 0.2, 0.15, 0.05, 0.15][: len(validations)])
        validation = _choice(rng, *validations, p=list(odds / odds.sum()))
    own_size = validation == "arrays" and _maybe(rng, 0.5)
    own_size = own_size or (validation == "arrays" and feeding != "arrays")
    return {
        "feeding": feeding,
        "rows": rows,
        "batch_size": batch_size,
        "epochs": 2 if _maybe(rng, 0.8) else 3,
        "steps_per_epoch": None,
        "weights": _choice(rng, *weights, p=p),
        "validation": validation,
        "validation_rows": 0 if validation == "none" else int(rng.integers(5, 20)),
        "validation_batch_size": int(rng.integers(3, 9)) if own_size else None,
        "validation_freq": 2 if _maybe(rng, 0.2) else 1,
        "test_rows": int(rng.integers(6, 24)),
        "test_batch_size": int(rng.integers(3, 9)),
    }


def _execution(rng: np.random.Generator, case: dict[str, Any]) -> dict[str, Any]:
    run_eagerly = _maybe(rng, 0.03)
    steps = 1 if run_eagerly else _choice(rng, 1, 2, 3, 7, p=[0.4, 0.25, 0.2, 0.15])
    steps_per_epoch = None
    if case["feeding"] in ("repeat", "generator"):
        steps_per_epoch = int(rng.integers(3, 6))
        if not _maybe(rng, 0.1):
            # Stock Keras trains past the epoch's end where it is no multiple.
            steps_per_epoch = steps * max(1, round(steps_per_epoch / steps))
    callbacks = ["none", "early_stopping"]
    if case["schedule"] == "none":
        callbacks += ["reduce_lr", "lr_scheduler"]
    callback = "none" if _maybe(rng, 0.5) else _choice(rng, *callbacks)
    loop = case["feeding"] == "train_on_batch"
    # After a layer was frozen, stock Keras' averages go to the wrong variables: it pairs them by
    # their places among those still trained.
    may_freeze = "use_ema" not in case["optimizer_options"]
    return {
        "steps_per_epoch": steps_per_epoch,
        "steps_per_execution": steps,
        "jit_compile": not run_eagerly and _maybe(rng, 0.25),
        "run_eagerly": run_eagerly,
        "callback": "none" if loop else callback,
        "records_batches": not loop and _maybe(rng, 0.6),
        "second_round": may_freeze and _maybe(rng, 0.12),
    }
