"""What is fitted to the columns of a table, and Keras' FeatureSpace made of it."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.data.cells import is_code, is_whole
from tfgpu.data.records import Schema
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks.tabular.columns import Asked, Spelling, as_numbers, as_strings, load, usable

PIECES = 16
"""Pieces of a number's range, with as many training rows in each, for models that take them."""

_BATCH = 4096  # Rows that are encoded at once.
_LEAST_DEVIATION = 1e-6  # Below 1e-7, Normalization divides by that.
_MOST_DEVIATION = 1e18  # Above 1.8e19, the variance is infinite in float32.
_MOST_ID = 0.5  # Different strings for each row from which on a column only names rows.


def fit(
    train: Any, schema: Schema, target: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Means, variances and vocabularies of the columns that are learnt from.

    Args:
        train: `Records` of the training split, and of no other.
        schema: Of the table.
        target: The column that is learnt.
        options: `Task.options`.

    Returns:
        "numbers" and "categories", as `Encoder` takes them, and "left_out", why by column; and
        lines for the user.

    Raises:
        RequestError: An option is wrong.
        DataError: A cell is, or there is nothing to learn from.
    """
    asked = Asked.of(options, schema, target)
    if options["vocabulary"] < 1:
        raise RequestError(f"--task_options=vocabulary={options['vocabulary']}: must be at least 1")
    left_out: dict[str, str] = {}
    numbers: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    notes: list[str] = []
    candidates = []
    for name, feature in schema.features.items():
        if name == target or name in asked.ignore:
            continue
        named = name in asked.numbers or name in asked.categories
        if not usable(feature) and not (named and feature.dtype == "string"):
            if named:
                raise RequestError(
                    f"the column {name!r} is {feature.described}, which is neither a number nor a "
                    "category; leave it out of --task_options"
                )
            left_out[name] = feature.described
            continue
        candidates.append(name)
    for name, values in load(train, tuple(candidates), schema).items():
        feature = schema.features[name]
        is_number = feature.kind in ("number", "numbers") and name not in asked.categories
        if is_number or name in asked.numbers:
            found = fit_numbers(name, as_numbers(values, name, feature))
            if found:
                numbers += found
            else:
                left_out[name] = _constant(values)
            continue
        if values.ndim > 1:
            raise RequestError(f"the column {name!r} is of several numbers, and no category")
        strings = as_strings(values)
        counts = collections.Counter(strings.tolist())
        if name not in asked.categories and len(counts) > max(1, _MOST_ID * len(strings)):
            where = f"; among numbers, {feature.stray}" if feature.stray else ""
            if feature.dtype == "string" and all(
                _is_plain(each.decode(errors="replace")) for each in counts if each
            ):
                where = (
                    "; whole numbers beyond what float64 tells apart: "
                    f"--task_options=numbers={name} takes them as numbers, rounded"
                )
            left_out[name] = f"{len(counts):,} different values in {len(strings):,} rows{where}"
        elif len(counts) == 1:
            left_out[name] = "the same in every row"
        else:
            if feature.stray:
                notes.append(
                    f"the column {name!r} is taken as categories, for it holds text among its "
                    f"numbers ({feature.stray})"
                )
            # By frequency, ties by the order of the strings.
            common = sorted(counts, key=lambda each: (-counts[each], each))
            kept = [each.decode(errors="replace") for each in common[: options["vocabulary"]]]
            categories.append({"column": name, "vocabulary": kept})
    if not numbers and not categories:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        reasons = reasons or "--task_options=ignore names every other column"
        raise DataError(f"{schema.requested!r} has nothing to learn {target!r} from: {reasons}")
    return {"numbers": numbers, "categories": categories, "left_out": left_out}, notes


def _constant(values: np.ndarray) -> str:
    """Why a column of numbers says nothing: as float32, in which models compute, they are one."""
    known = np.unique(values[~np.isnan(values)])
    if not known.size:
        return "empty in every row"
    if values.ndim == 1 and len(known) > 1:
        return f"the same in every row as float32, such as {known[0]:.17g} and {known[1]:.17g}"
    return "the same in every row"


def _is_plain(cell: str) -> bool:
    return is_whole(cell) and not is_code(cell)


def fit_numbers(name: str, values: np.ndarray) -> list[dict[str, Any]]:
    """Mean, variance and edges of a column of numbers, or of each of several.

    Args:
        name: Of the column.
        values: float64 (n,) or (n, k), with NaN.

    Returns:
        One for each that varies; of what is missing in training, an indicator is learnt from too.
    """
    several = values.ndim > 1
    found = []
    for i, each in enumerate(values.reshape(len(values), -1).T):
        # What a float32 cannot tell apart, no exported file can either.
        known = each[~np.isnan(each)].astype(np.float32).astype(np.float64)
        missing = len(known) < len(each)
        if not known.size or (known.min() == known.max() and not missing):
            continue
        mean, variance = float(known.mean()), float(known.var())
        edges = np.unique(np.quantile(known, np.linspace(0, 1, PIECES + 1)))
        found.append(
            {
                "column": name,
                **({"index": i} if several else {}),
                "mean": mean,
                "variance": variance if variance > 0 else 1.0,
                "edges": edges.tolist() if len(edges) > 1 else [mean - 0.5, mean + 0.5],
                "indicator": missing,
            }
        )
    return found


class Encoder:
    """Columns -> what a model of a table takes, by Keras' FeatureSpace.

    A number is standardised; a missing one becomes 0, the mean, and where some were missing in
    training there is a 1 for it behind all numbers. A category becomes its number among those of
    all columns, from 1 on; one that the training split does not have becomes 0.

    Args:
        fitted: What `fit` returned.
    """

    def __init__(self, fitted: Mapping[str, Any]):
        self.numbers: Sequence[Mapping[str, Any]] = fitted["numbers"]
        self.categories: Sequence[Mapping[str, Any]] = fitted["categories"]
        titles = [title(each) for each in (*self.numbers, *self.categories)]
        self.inputs = dict(zip(_identifiers(titles), titles, strict=True))
        """Names that graphs may have, to columns."""
        self._names = list(self.inputs)
        self._spellings = [Spelling(each["column"], each["vocabulary"]) for each in self.categories]
        sizes = [len(each["vocabulary"]) for each in self.categories]
        self.starts = np.cumsum([0, *sizes[:-1]]).tolist() if sizes else []
        self._space: keras.utils.FeatureSpace | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that it takes."""
        return tuple(dict.fromkeys(each["column"] for each in (*self.numbers, *self.categories)))

    @property
    def indicators(self) -> list[int]:
        """Positions of the numbers that were missing in training."""
        return [i for i, each in enumerate(self.numbers) if each["indicator"]]

    @property
    def spec(self) -> dict[str, tf.TensorSpec]:
        """Of x."""
        found = {}
        if self.numbers:
            width = len(self.numbers) + len(self.indicators)
            found["numbers"] = tf.TensorSpec((width,), tf.float32)
        if self.categories:
            found["categories"] = tf.TensorSpec((len(self.categories),), tf.int32)
        return found

    def space(self) -> keras.utils.FeatureSpace:
        """A FeatureSpace of what was fitted, which gives a dict by the names of `inputs`."""
        kinds = {}
        for name, number in zip(self._names, self.numbers, strict=False):
            mean, deviation = number["mean"], number["variance"] ** 0.5
            if _LEAST_DEVIATION < deviation < _MOST_DEVIATION:
                layer = keras.layers.Normalization(
                    axis=None, mean=mean, variance=number["variance"]
                )
            else:
                layer = keras.layers.Rescaling(1 / deviation, -mean / deviation)
            kinds[name] = keras.utils.FeatureSpace.feature("float32", layer, "float")
        for name, category in zip(self._names[len(self.numbers) :], self.categories, strict=True):
            lookup = keras.layers.StringLookup(vocabulary=list(category["vocabulary"]))
            kinds[name] = keras.utils.FeatureSpace.feature("string", lookup, "int")
        space = keras.utils.FeatureSpace(kinds, output_mode="dict")
        space.build_from_config({})  # Every layer knows already what `adapt` would find.
        space.get_encoded_features()  # Builds them here, and not within somebody's graph.
        return space

    def join(self, raw: Mapping[str, Any], encoded: Mapping[str, Any]) -> dict[str, Any]:
        """x out of what a FeatureSpace gives; of tensors and of Keras' symbolic ones alike.

        Args:
            raw: (n, 1) tensors by the names of `inputs`, of numbers at least.
            encoded: What the FeatureSpace makes of them.
        """
        ops = keras.ops
        found = {}
        count = len(self.numbers)
        if self.numbers:
            names = self._names[:count]
            missing = {name: ops.isnan(raw[name]) for name in names}
            parts = [
                ops.where(missing[name], ops.zeros_like(encoded[name]), encoded[name])
                for name in names
            ]
            parts += [ops.cast(missing[names[i]], "float32") for i in self.indicators]
            found["numbers"] = ops.concatenate(parts, axis=-1)
        if self.categories:
            parts = []
            for name, start in zip(self._names[count:], self.starts, strict=True):
                own = ops.cast(encoded[name], "int32")
                parts.append(ops.where(ops.equal(own, 0), ops.zeros_like(own), own + start))
            found["categories"] = ops.concatenate(parts, axis=-1)
        return found

    def raw(self, columns: Mapping[str, np.ndarray], schema: Schema) -> dict[str, np.ndarray]:
        """What a FeatureSpace takes, (n,) float32 or bytes, by the names of `inputs`.

        Raises:
            DataError: A cell of numbers is none.
        """
        found: dict[str, np.ndarray] = {}
        as_floats: dict[str, np.ndarray] = {}
        for name, number in zip(self._names, self.numbers, strict=False):
            column = number["column"]
            if column not in as_floats:
                feature = schema.features[column]
                as_floats[column] = as_numbers(columns[column], column, feature)
            values = as_floats[column]
            if "index" in number:
                if values.ndim < 2 or values.shape[1] <= number["index"]:
                    raise DataError(f"the column {column!r} has fewer numbers than in training")
                values = values[:, number["index"]]
            found[name] = values.astype(np.float32)
        for i, category in enumerate(self.categories):
            found[self._names[len(self.numbers) + i]] = self.spell(i, columns[category["column"]])
        return found

    def spell(self, i: int, values: np.ndarray) -> np.ndarray:
        """Cells (n,) of the i-th column of categories, as bytes that its vocabulary may have.

        Raises:
            DataError: A cell could be several categories.
        """
        return self._spellings[i](values)

    def __call__(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """x of rows.

        Args:
            raw: What `raw` returned.

        Returns:
            "numbers" float32 (n, numbers and indicators), "categories" int32 (n, columns).
        """
        with tf.device("CPU"):
            if self._space is None:
                self._space = self.space()
                signature = {
                    name: tf.TensorSpec(
                        [None, 1], tf.float32 if i < len(self.numbers) else tf.string
                    )
                    for i, name in enumerate(self._names)
                }
                # Nothing in it is control flow of Python's, which takes seconds to look through.
                self._graph = tf.function(
                    self._encode, input_signature=[signature], autograph=False
                )
            count = len(next(iter(raw.values())))
            parts = []
            for first in range(0, max(count, 1), _BATCH):
                some = {
                    name: tf.constant(
                        values[first : first + _BATCH, None],
                        tf.float32 if values.dtype.kind == "f" else tf.string,
                    )
                    for name, values in raw.items()
                }
                parts.append({name: each.numpy() for name, each in self._graph(some).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _encode(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        assert self._space is not None
        return self.join(raw, self._space(dict(raw)))

    def unknown(
        self, raw: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """The cells that are categories which the training split does not have, by column."""
        found = {}
        for i, name in enumerate(self._names[len(self.numbers) :]):
            cells = raw[name][x["categories"][:, i] == 0]
            if len(cells):
                found[self.inputs[name]] = [each.decode(errors="replace") for each in cells]
        return found

    def gaps(self, raw: Mapping[str, np.ndarray]) -> dict[str, int]:
        """How many numbers are missing, by column, of columns where none was in training."""
        names = [name for i, name in enumerate(self._names[: len(self.numbers)])]
        found = {}
        for i, name in enumerate(names):
            count = int(np.isnan(raw[name]).sum())
            if count and not self.numbers[i]["indicator"]:
                found[self.inputs[name]] = count
        return found


def title(part: Mapping[str, Any]) -> str:
    """What a number or a category is called: its column, with its place where it has several."""
    return f"{part['column']}[{part['index']}]" if "index" in part else str(part["column"])


def _identifiers(titles: Sequence[str]) -> list[str]:
    """Names of ASCII letters, digits and underscores, which graphs take, all different."""
    found: list[str] = []
    for each in titles:
        name = re.sub(r"\W+", "_", each, flags=re.ASCII).strip("_") or "column"
        name = f"column_{name}" if name[0].isdigit() else name
        unique, count = name, 1
        while unique.lower() in (other.lower() for other in found):
            count += 1
            unique = f"{name}_{count}"
        found.append(unique)
    return found
