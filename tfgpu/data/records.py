"""What a data set is stored as: features by name and type, and random access to their records.

A reader (`folder`, `tfds_source`, ...) opens its kind of storage as a `Source`. It does not know
what is to be learnt: a task chooses among the features, and makes `Examples` of x and y from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import Examples, Read, data_errors, read_subset, resize
from tfgpu.errors import DataError, RequestError

KINDS = (
    *("image", "mask", "class", "classes", "boxes", "text", "audio", "id", "number", "numbers"),
    *("video", "other"),
)
"""Types of features.

`image` (height, width, channels); `mask` (height, width, 1), a class a pixel; `class`, an integer
with names; `classes`, a sequence of them; `boxes`, a sequence of boxes with classes; `text`, a
string to read; `audio` (samples,) or (samples, channels); `id`, a string or a whole number that
only names something; `number`, one; `numbers`, a tensor of them.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of a data set.

    Attributes:
        kind: One of `KINDS`.
        shape: Of one example; None for a side that varies.
        dtype: As NumPy names it; "string" for text.
        class_names: Of "class", "classes", "boxes" and, where they are known, "mask".
        varies: What to say where its shape varies and one is needed; "" for a line in general.
        described: As the storage names its type, for messages.
        sample_rate: Of "audio", in Hz; None where it is not known.
        parts: Of "boxes" that are decoded to a dict, the names in it: of "box", (n, 4) top, left,
            bottom, right as fractions of the image's sides; of "class", (n,), and of "crowd", (n,),
            those which count neither for nor against, where there are such. {}: boxes alone.
        stray: Where a column of mostly numbers has the first cell that is none, and what it holds;
            "" where there is no such.
    """

    kind: str
    shape: tuple[int | None, ...] = ()
    dtype: str = ""
    class_names: tuple[str, ...] = ()
    varies: str = ""
    described: str = ""
    sample_rate: int | None = None
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stray: str = ""


Select = Callable[[tuple[str, ...]], Callable[..., dict[str, tf.Tensor]]]
"""Names of features -> what decodes them from the components of ONE raw record, by name."""


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the stored records of one split.

    Attributes:
        num_examples: How many there are; positions run from 0 below it.
        read: int64 [n] positions -> the raw records, one or more tensors that are batch-first.
            Usable inside a `tf.data` map.
        select: Names of features -> a function of the components of ONE raw record that gives
            these features by name, with static shapes as far as `Feature.shape` has them. Usable
            inside a `tf.data` map.
        select_batch: The same for the components of MANY raw records, where that takes less than
            one after another; None where it does not.
        select_missing: The same for both, with NaN, -1 and "" where a number, a class and a string
            are missing, in storage whose `select` refuses them; None where nothing is missing.
    """

    num_examples: int
    read: Read
    select: Select
    select_batch: Select | None = None
    select_missing: Select | None = None

    @classmethod
    def from_arrays(cls, features: Mapping[str, np.ndarray]) -> Records:
        """Records that lie in memory: an array (n, ...) for each feature, strings too."""
        names = list(features)
        with tf.device("CPU"):
            arrays = [tf.constant(features[name]) for name in names]

        def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("CPU"):
                return tuple(tf.gather(array, positions) for array in arrays)

        def select(wanted: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
            return lambda *parts: {name: parts[names.index(name)] for name in wanted}

        return cls(len(arrays[0]), read, select, select_batch=select)

    def take(self, positions: np.ndarray) -> Records:
        """Returns a view of some of the records: its position i is positions[i] here.

        Raises:
            IndexError: A position lies outside.
        """
        read = read_subset(self.read, self.num_examples, positions)
        return dataclasses.replace(self, num_examples=len(positions), read=read)

    def with_missing(self) -> Records:
        """These records, with missing values given and not refused; see `select_missing`."""
        if self.select_missing is None:
            return self
        return dataclasses.replace(
            self, select=self.select_missing, select_batch=self.select_missing
        )

    def load(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads features of every record, in natural order, such as those a task is fitted on.

        Args:
            names: Of features whose shape does not vary.

        Returns:
            An array (n, ...) for each; strings are bytes.

        Raises:
            DataError: A record is damaged.
        """
        if self.select_batch is not None:
            with data_errors(), tf.device("CPU"):
                parts = self.read(tf.range(self.num_examples, dtype=tf.int64))
                many = self.select_batch(tuple(names))(*parts)
            return {name: many[name].numpy() for name in names}
        examples = self.examples(names, lambda found: (found, ()))
        found: dict[str, np.ndarray] = examples.load_arrays()[0]
        return found

    def examples(
        self,
        names: Iterable[str],
        decode: Callable[[dict[str, tf.Tensor]], tuple[object, object]],
        *,
        y_names: Iterable[str] = (),
        decode_y: Callable[[dict[str, tf.Tensor]], object] | None = None,
        raw_names: Iterable[str] = (),
        decode_raw: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]] | None = None,
    ) -> Examples:
        """Examples of which one is made from one record.

        Args:
            names: The features that `decode` takes.
            decode: Features by name -> (x, y).
            y_names: The features that `decode_y` takes.
            decode_y: Features by name -> y.
            raw_names: The features that `decode_raw` takes.
            decode_raw: Features by name -> what an exported model takes.
        """

        def composed(
            names: Iterable[str], function: Callable[..., object]
        ) -> Callable[..., object]:
            selected = self.select(tuple(names))
            return lambda *parts: function(selected(*parts))

        made: dict[str, object] = {"decode": composed(names, decode)}
        if decode_y is not None:
            made["decode_y"] = composed(y_names, decode_y)
        if decode_raw is not None:
            made["decode_raw"] = composed(raw_names, decode_raw)
        return Examples(num_examples=self.num_examples, read=self.read, **made)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a data set is called, and where it comes from.

    Attributes:
        name: Of the data set, without version and configuration.
        version: Of its content, empty where there is none, as for a folder.
        fingerprint: SHA-256 over what determines the content, in hexadecimal: name, version,
            features and the name and size of each file of a TFDS set; the relative path and size
            of each image of a folder.
        license: As the source states it, else empty.
        citation: As the source states it, else empty.
        homepage: As the source states it, else empty.
    """

    name: str
    version: str = ""
    fingerprint: str
    license: str = ""
    citation: str = ""
    homepage: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The features of a data set, which are known before its records are.

    Attributes:
        requested: How the user named the data set, for messages.
        features: By name.
        supervised: The features that the set itself has for input and target, if it says so.
    """

    requested: str
    features: Mapping[str, Feature]
    supervised: tuple[str, str] | None = None

    def of_kind(self, *kinds: str) -> list[str]:
        """The names of the features of these kinds."""
        return [name for name, feature in self.features.items() if feature.kind in kinds]

    @property
    def described(self) -> str:
        """The features for a message: "image: Image(32, 32, 3), label: ClassLabel"."""
        return ", ".join(f"{name}: {each.described}" for name, each in self.features.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Description):
    """What one kind of storage knows about a data set, before any split is chosen.

    Attributes:
        schema: The features.
        split: Opens the split of a name; None where there is none. Where a second argument names
            a feature of the kind "class" or "boxes", a split without labels is none.
        notes: Lines for the user: what the storage holds that is left, or odd.
    """

    schema: Schema
    split: Callable[[str, str | None], Records | None]
    notes: tuple[str, ...] = ()


def refuse_lines(requested: str, what: str, names: Iterable[str]) -> None:
    """Refuses names of several lines: the files beside an export have one a line.

    Args:
        requested: How the user named the data set.
        what: The names are of, for the message.
        names: Of classes or ids.

    Raises:
        DataError: Names one.
    """
    for name in names:
        if "\n" in name or "\r" in name:
            raise DataError(
                f"the {what} {name!r} of {requested!r} has a line break; write it in one line"
            )


def refuse_new_classes(
    requested: str, label: str, split: str, classes: Iterable[str], known: Iterable[str]
) -> None:
    """Refuses classes of a split that the training split does not have: they cannot be learnt.

    Args:
        requested: How the user named the data set.
        label: The feature.
        split: Its name.
        classes: Of the split.
        known: Of the training split.

    Raises:
        DataError: Names one.
    """
    of_train = set(known)
    new = [each for each in classes if each not in of_train]
    if new:
        raise DataError(
            f"{requested!r}: the class {new[0]!r} of {label!r} is in the {split} split and not in "
            "the training split: take its rows away, or move some of them to train"
        )


def image_shape(
    feature: Feature, size: tuple[int, int] | None, *, requested: str
) -> tuple[int, int, int]:
    """The shape that every image of a feature is brought to.

    Args:
        feature: Of the kind "image".
        size: (height, width) that the user asked for; None for the images' own.
        requested: Of the data set, for messages.

    Returns:
        (height, width, channels).

    Raises:
        RequestError: The images differ in size and `size` is None, or are not uint8.
    """
    height, width, channels = feature.shape
    if feature.dtype != "uint8" or channels is None:
        raise RequestError(
            f"{requested!r} has images of type {feature.dtype} and shape "
            f"{tuple(feature.shape)}; images must be uint8 with a known number of channels"
        )
    if size is not None:
        return (*size, channels)
    if height is None or width is None:
        raise RequestError(
            feature.varies
            or f"the images of {requested!r} differ in size: say which size to bring them to, "
            "such as --image_size=224x224"
        )
    return height, width, channels


def image(value: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """An image brought to a shape by the one rule; usable inside a `tf.data` map.

    Args:
        value: uint8 [H, W, C].
        shape: (height, width, C) wanted.
    """
    return tf.ensure_shape(resize(value, shape[:2]), shape)
