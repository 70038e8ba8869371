"""What is left out of the comparison, by rule and not by a wider tolerance.

A rule says of which cases, on how many replicas, tfgpu differs from stock Keras on purpose, or
cannot be the same. It leaves out the whole case or the quantities that it names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import NamedTuple

from .cases import CLIPS, OPTIMIZERS, Case


class Rule(NamedTuple):
    """One reason to leave something out."""

    name: str
    reason: str  # One sentence.
    applies: Callable[[Case, int], bool]
    quantities: tuple[str, ...] = ()  # Patterns of their names; empty: the whole case.


def _partial(case: Case) -> bool:
    """Whether any batch of the training, validation or test data is not full."""
    sizes = [(case.rows, case.batch_size), (case.test_rows, case.test_batch_size)]
    if case.validation != "none":
        sizes.append((case.validation_rows, case.validation_batch_size or case.batch_size))
    return any(rows % size for rows, size in sizes)


def _counts_updates(case: Case) -> bool:
    """Whether an update depends on how many there were."""
    return (
        OPTIMIZERS[case.optimizer].counts
        or case.schedule != "none"
        or "ema_overwrite_frequency" in case.optimizer_options
    )


def _asks_first(case: Case) -> bool:
    """Whether stock Keras asks for a batch before it begins a step."""
    return case.jit_compile or case.run_eagerly or case.steps_per_execution > 1


def _begins_too_many(case: Case) -> bool:
    """Whether stock Keras begins a step before it finds that the training data has ended."""
    return case.feeding == "unknown" and not _asks_first(case)


def _a_step_without_data_does_something(case: Case) -> bool:
    """Whether the begun part of a step without data changes more than the count of updates."""
    moves = {"weight_decay", "use_ema"} & case.optimizer_options.keys()
    return bool(moves or case.optimizer == "adamw" or case.optimizer == "muon" or case.dropout)


RULES = [
    Rule(
        "batch statistics",
        "BatchNormalization that is not synchronized, or that Keras does not synchronize because "
        "of a mask, normalizes by the replica's own rows.",
        lambda case, replicas: (
            replicas > 1
            and (
                case.normalization == "batch"
                or (case.normalization == "synchronized" and case.network.startswith("masked_"))
            )
        ),
    ),
    Rule(
        "random layers",
        "Replicas draw different random numbers, so a random layer draws other numbers than on "
        "one device.",
        lambda case, replicas: replicas > 1 and case.dropout > 0,
    ),
    Rule(
        "sparse gradients",
        "Stock Keras squares and clips the rows of a sparse gradient (Embedding) before it sums "
        "those of equal indices; tfgpu sums first.",
        lambda case, replicas: (
            case.inputs == "tokens"
            and (
                not OPTIMIZERS[case.optimizer].linear
                or bool(CLIPS.keys() & case.optimizer_options.keys())
            )
        ),
    ),
    Rule(
        "gradient accumulation",
        "With gradient accumulation the schedule and the average of the weights go on with every "
        "update; those of stock Keras go on with every batch.",
        lambda case, replicas: (
            "gradient_accumulation_steps" in case.optimizer_options
            and (case.schedule != "none" or "use_ema" in case.optimizer_options)
        ),
    ),
    Rule(
        "steps of data of unknown size",
        "Stock Keras begins a step that finds no data, and counts the last execution as a whole "
        "one.",
        lambda case, replicas: (
            case.feeding in ("unknown", "generator") or case.validation in ("unknown", "generator")
        ),
        ("batches",),
    ),
    Rule(
        "steps past the epoch's end",
        "With steps_per_epoch no multiple of steps_per_execution, stock Keras trains past the "
        "epoch's end.",
        lambda case, replicas: (
            case.steps_per_epoch is not None
            and case.steps_per_epoch % case.steps_per_execution != 0
        ),
    ),
    Rule(
        "one update too many",
        "Stock Keras begins a step before it finds that data of unknown size has ended, which "
        "changes what depends on the count of updates or moves without a gradient.",
        lambda case, replicas: (
            _begins_too_many(case)
            and (
                _counts_updates(case)
                or _a_step_without_data_does_something(case)
                or case.network == "counter"
            )
        ),
    ),
    Rule(
        "one update too many",
        "Stock Keras counts an update for the step that finds the end of data of unknown size.",
        lambda case, replicas: _begins_too_many(case),
        ("iterations", "optimizer/*iteration"),
    ),
    Rule(
        "one update too many",
        "Stock Keras counts a batch for the step that finds the end of data of unknown size, in a "
        "metric whose count does not depend on the data.",
        lambda case, replicas: _begins_too_many(case) and case.network == "metric_of_batches",
        ("history/activity",),
    ),
    Rule(
        "one update too many",
        "Stock Keras counts a batch for the step that finds the end of validation data of unknown "
        "size, in a metric whose count does not depend on the data.",
        lambda case, replicas: (
            case.validation == "unknown"
            and not _asks_first(case)
            and case.network == "metric_of_batches"
        ),
        ("history/val_activity",),
    ),
    Rule(
        "one update too many",
        "Stock Keras counts a batch for the step that finds the end of training data of unknown "
        "size, in the losses per output, whose count does not depend on the data.",
        lambda case, replicas: case.outputs in ("dict", "list") and _begins_too_many(case),
        ("history/p_loss", "history/q_loss"),
    ),
    Rule(
        "one update too many",
        "Stock Keras counts a batch for the step that finds the end of validation data of unknown "
        "size, in the losses per output, whose count does not depend on the data.",
        lambda case, replicas: (
            case.outputs in ("dict", "list")
            and case.validation == "unknown"
            and not _asks_first(case)
        ),
        ("history/val_p_loss", "history/val_q_loss"),
    ),
    Rule(
        "partial batches in losses per output",
        "Stock Keras weighs a partial batch like a whole one in the losses per output.",
        lambda case, replicas: case.outputs in ("dict", "list") and _partial(case),
        ("history/*p_loss", "history/*q_loss", "evaluate/*p_loss", "evaluate/*q_loss"),
    ),
]


def excluded(case: Case, replicas: int) -> Rule | None:
    """Finds the first rule that leaves out the whole case.

    Args:
        case: The case.
        replicas: Replicas that tfgpu trains on.

    Returns:
        The rule, or None where the case is compared.
    """
    for rule in RULES:
        if not rule.quantities and rule.applies(case, replicas):
            return rule
    return None


def left_out(case: Case, replicas: int, quantity: str) -> Rule | None:
    """Finds the first rule that leaves out one quantity of a case that is compared.

    Args:
        case: The case.
        replicas: Replicas that tfgpu trains on.
        quantity: Name as in `compare.Result`, such as `history/loss`.
    """
    for rule in RULES:
        names = any(fnmatch.fnmatch(quantity, pattern) for pattern in rule.quantities)
        if names and rule.applies(case, replicas):
            return rule
    return None
