"""From rows of a table to x and y."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import Examples
from tfgpu.data.records import Records, Schema
from tfgpu.errors import DataError
from tfgpu.tasks.tabular import columns
from tfgpu.tasks.tabular.encoder import Encoder, fit, title
from tfgpu.tasks.task import DataSpec, Reading, Request

_NAMED = 3  # Columns or categories that a message names.


def read(request: Request) -> Reading:
    """x is {"numbers": float32 (N,), "categories": int32 (C,)}; y an int32 class () or a number.

    Raises:
        RequestError: An option is wrong.
        DataError: A cell is, or the target is the same in every row.
    """
    schema, target = request.schema, request.roles["y"]
    notes: list[str] = []
    if request.fitted is not None:
        fitted = dict(request.fitted)
        _check_columns(schema, fitted)
    else:
        fitted, notes = _fit(request, target)
    encoder = Encoder(fitted)
    classes = tuple(fitted.get("classes", ()))
    # What `evaluate` measures a finished run on may be other data, its training split too.
    other = request.fitted is not None

    def examples(split: str, some: Records) -> Examples:
        found = columns.load(some, encoder.columns, schema)
        raw = encoder.raw(found, schema)
        x = encoder(raw)
        y = _targets(some, schema, target, fitted)
        with tf.device("CPU"):
            arrays = tf.nest.map_structure(tf.constant, (x, y))
            cells = {
                name: tf.constant(each, tf.float32 if each.dtype.kind == "f" else tf.string)
                for name, each in raw.items()
            }

        # Of one row and of many alike.
        def gather(tensors: Any, positions: tf.Tensor) -> Any:
            with tf.device("CPU"):
                return tf.nest.map_structure(lambda each: tf.gather(each, positions), tensors)

        def decode(positions: tf.Tensor) -> tuple[Any, Any]:
            found: tuple[Any, Any] = gather(arrays, positions)
            return found

        return Examples(
            len(y),
            lambda positions: (positions,),
            decode,
            decode_y=lambda positions: gather(arrays[1], positions),
            decode_raw=lambda positions: raw_inputs(
                encoder, gather(cells, positions), gather(arrays[0], positions)
            ),
            decode_batch=decode,
            notes=_unusual(split, encoder, raw, x) if other or split != "train" else (),
        )

    spec = DataSpec(
        x=encoder.spec,
        y=tf.TensorSpec((), tf.int32) if classes else tf.TensorSpec((1,), tf.float32),
        class_names=classes,
        fitted=fitted,
    )
    return Reading(spec=spec, examples=examples, notes=tuple(notes))


RAW_NUMBERS, NUMBERED = "raw_numbers", "categories"


def raw_inputs(
    encoder: Encoder, raw: Mapping[str, tf.Tensor], x: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """What exported files of any kind take of one row, by name.

    Args:
        encoder: Of the run.
        raw: Scalars by the names of `Encoder.inputs`.
        x: Of the row.
    """
    found = {name: tf.reshape(each, [1]) for name, each in raw.items()}
    if encoder.numbers:
        names = list(encoder.inputs)[: len(encoder.numbers)]
        found[RAW_NUMBERS] = tf.stack([raw[name] for name in names])
    if encoder.categories:
        found[NUMBERED] = x["categories"]
    return found


def _check_columns(schema: Schema, fitted: Mapping[str, Any]) -> None:
    encoder = Encoder(fitted)
    for each in encoder.columns:
        if each not in schema.features:
            raise DataError(
                f"{schema.requested!r} has no column {each!r}, which the model was trained on; it "
                f"has {', '.join(schema.features)}"
            )
    for part in (*encoder.numbers, *encoder.categories):
        name, feature = part["column"], schema.features[part["column"]]
        several = "index" in part
        fits = feature.kind == "numbers" if several else feature.shape == ()
        if not fits or not (columns.usable(feature) or feature.dtype == "string"):
            what = "a list of numbers" if several else "a single number or category"
            raise DataError(
                f"the column {name!r} of {schema.requested!r} is {feature.described}, and the "
                f"model was trained on {what} there"
            )


def _fit(request: Request, target: str) -> tuple[dict[str, Any], list[str]]:
    schema, options = request.schema, request.options
    feature = schema.features[target]
    goal, why = columns.goal_of(target, feature, options["goal"])
    # Refuses what is missing, with its line, before it takes long to fit.
    values = request.train.load((target,))[target]
    described = f"target {target!r}"
    own: dict[str, Any] = {"target": target, "goal": goal}
    if goal == "regression":
        numbers = _numeric(values, target, schema)
        own |= {"mean": float(numbers.mean()), "deviation": float(numbers.std())}
        own |= {"lowest": float(numbers.min()), "highest": float(numbers.max())}
        if own["lowest"] == own["highest"]:
            raise _constant(target, schema, f"{own['lowest']:g}")
        described += (
            f", from {own['lowest']:g} to {own['highest']:g}, mean {own['mean']:.4g}, standard "
            f"deviation {own['deviation']:.4g}"
        )
    else:
        names = _class_names(values, target, schema)
        own["classes"] = names
        described += f", {len(names)} classes"
    other = "classification" if goal == "regression" else "regression"
    way_out = ""
    if options["goal"] == "auto" and why != columns.TEXT:
        way_out = f"; --task_options=goal={other} for the other"
    found, notes = fit(request.train, schema, target, options)
    fitted = own | found
    count = sum(len(each["vocabulary"]) for each in found["categories"])
    missing = [title(each) for each in found["numbers"] if each["indicator"]]
    lines = [
        f"table: {len(found['numbers']):,} numbers and {len(found['categories']):,} columns of "
        f"{count:,} categories",
        f"{described}: {goal} ({why}{way_out})",
    ]
    if missing:
        lines.append(
            f"empty cells of {_some(missing)} count as the mean, and that they are empty is "
            "learnt from too"
        )
    if found["left_out"]:
        left_out = [f"{name} ({why})" for name, why in found["left_out"].items()]
        lines.append(f"left out: {_some(left_out)}")
    return fitted, [*lines, *notes]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"


def _constant(target: str, schema: Schema, value: str) -> DataError:
    return DataError(
        f"the target {target!r} of {schema.requested!r} is {value} in every training row: there "
        "is nothing to learn; name another with --target=COLUMN"
    )


def _numeric(values: np.ndarray, target: str, schema: Schema) -> np.ndarray:
    feature = schema.features[target]
    if feature.kind == "class" and values.dtype.kind in "iu":
        values = np.array([each.encode() for each in feature.class_names], object)[values]
    numbers = columns.as_numbers(values, target, feature)
    if np.isnan(numbers).any():
        row = int(np.flatnonzero(np.isnan(numbers))[0])
        raise DataError(
            f"the target {target!r} is missing in row {row + 1} of a split; fill it in or take the "
            "row away"
        )
    return numbers


def _cells(values: np.ndarray, target: str, schema: Schema) -> np.ndarray:
    """The target (n,), classes as their names in bytes."""
    feature = schema.features[target]
    if feature.kind == "class" and values.dtype.kind in "iu":
        if values.size and values.min() < 0:  # As TFDS marks what has no label.
            raise DataError(f"the target {target!r} is missing in a row of a split")
        return np.array([each.encode() for each in feature.class_names], object)[values]
    return values


def _class_names(values: np.ndarray, target: str, schema: Schema) -> list[str]:
    """The classes, sorted; those of the whole table where it knows them."""
    feature = schema.features[target]
    strings = columns.as_strings(_cells(values, target, schema))
    cells = [each.decode(errors="replace") for each in strings]
    found = collections.Counter(cells)
    if len(found) == 1:
        raise _constant(target, schema, repr(cells[0]))
    if len(found) > max(2, len(cells) // 2):
        raise DataError(
            f"the target {target!r} of {schema.requested!r} has {len(found):,} different values in "
            f"{len(cells):,} training rows, and is no class; name another with --target=COLUMN"
        )
    if feature.class_names:
        return list(feature.class_names)
    if all(columns.WHOLE.fullmatch(each) for each in found):
        return sorted(found, key=int)
    return sorted(found)


def _targets(some: Records, schema: Schema, target: str, fitted: Mapping[str, Any]) -> np.ndarray:
    """int32 (n,) classes or float32 (n, 1) numbers."""
    values = some.load((target,))[target]
    if fitted["goal"] == "regression":
        return _numeric(values, target, schema).astype(np.float32)[:, None]
    numbers = {name.encode(): i for i, name in enumerate(fitted["classes"])}
    spelling = columns.Spelling(target, fitted["classes"])
    cells = spelling(_cells(values, target, schema)).tolist()
    unknown = [each for each in cells if each not in numbers]
    if unknown:
        raise DataError(
            f"{len(unknown):,} rows of {schema.requested!r} have the class "
            f"{unknown[0].decode(errors='replace')!r} or others in {target!r} that the model does "
            "not know; take them away"
        )
    return np.array([numbers[each] for each in cells], np.int32)


def _unusual(
    split: str, encoder: Encoder, raw: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """What a split has that training had not."""
    return tuple(f"{split}: {line}" for line in unusual(encoder.unknown(raw, x), encoder.gaps(raw)))


def unusual(unknown: Mapping[str, list[str]], gaps: Mapping[str, int]) -> list[str]:
    """Lines about categories and gaps that training had not, with counts and what is answered."""
    lines = []
    if unknown:
        each = [
            f"{len(cells):,} of {name} (such as {cells[0]!r})" for name, cells in unknown.items()
        ]
        count = sum(map(len, unknown.values()))
        lines.append(
            f"{count:,} cells hold categories that the model does not know: {_some(each)}; they "
            "are answered as unknown, by the other columns alone"
        )
    if gaps:
        each = [f"{count:,} of {name}" for name, count in gaps.items()]
        lines.append(
            f"{sum(gaps.values()):,} numbers are empty where none was in training: {_some(each)}; "
            "they count as the mean"
        )
    return lines
