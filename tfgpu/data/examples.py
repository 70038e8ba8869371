"""Random access to labelled images, whatever they are stored in.

A batch of training is a pure function of the seed, the epoch and the step, so every source of
images must give any example at any time at O(1). `Examples` is that: `read` fetches raw records by
position, `decode` makes one of them a picture and a label. Both run inside `tf.data`, so a stream
and a resident array come from the same two functions and hold the same bytes.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfgpu.engine.batches import untuned
from tfgpu.errors import DataError
from tfgpu.machine import hardware

# How many examples `dataset` and `load_arrays` read at once: many, since a call of Python from a
# graph costs as much as dozens of records; few enough for large pictures (224 x 224 x 3: 38 MB).
_BATCH = 256

# TensorFlow turns an exception of a Python function inside a graph into text; our message
# travels between these marks and is found again by `data_errors`.
_OPEN, _CLOSE = "<<tfgpu data: ", " :tfgpu data>>"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Random access to the labelled images of one split.

    Attributes:
        num_examples: How many examples there are; positions run from 0 below it.
        read: int64 [n] positions -> the raw records, one or more tensors that are batch-first,
            [n, ...]. Usable inside a `tf.data` map.
        decode: The components of ONE raw record -> (uint8 [H, W, C], int32 []). Usable inside a
            `tf.data` map; the static shape of the image is set.
    """

    num_examples: int
    read: Callable[[tf.Tensor], tuple[tf.Tensor, ...]]
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor]]

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every decoded image."""
        height, width, channels = self.dataset().element_spec[0].shape.as_list()
        return height, width, channels

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images (uint8) and labels (int32)."""
        return self.num_examples * (int(np.prod(self.image_shape, dtype=np.int64)) + 4)

    def take(self, positions: np.ndarray) -> "Examples":
        """Returns a view of some of the examples: its position i is positions[i] here.

        Args:
            positions: Integers [n], each from 0 below `num_examples`.

        Raises:
            IndexError: A position lies outside.
        """
        positions = np.asarray(positions, np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < self.num_examples:
            raise IndexError(f"positions must lie in [0, {self.num_examples})")
        with tf.device("CPU"):
            table = tf.constant(positions)
        read = self.read

        def read_subset(subset: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Records live in host memory: a GPU must not gather the positions for them.
            with tf.device("CPU"):
                return read(tf.gather(table, subset))

        return dataclasses.replace(self, num_examples=len(positions), read=read_subset)

    def batch(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads and decodes many examples; usable inside a `tf.data` map.

        Run several batches in parallel rather than single examples: TensorFlow's overhead for each
        call of a mapped function is more than it takes to decode a small picture (CIFAR-10, 2
        cores: 2.7 s against 4.3 s for 50,000).

        Args:
            positions: int64 [n].

        Returns:
            uint8 [n, H, W, C] and int32 [n].
        """
        return tf.map_fn(
            lambda parts: self.decode(*parts),
            _as_tuple(self.read(positions)),
            fn_output_signature=(tf.uint8, tf.int32),
            parallel_iterations=1,
        )

    def dataset(self, positions: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded examples one by one, in the order of the positions.

        Args:
            positions: Scalars int64; every example in its natural order when None.

        Returns:
            Elements (uint8 [H, W, C], int32 []), in the order of the positions although batches are
            read and decoded in parallel.
        """
        if positions is None:
            positions = tf.data.Dataset.range(self.num_examples)
        batches = positions.batch(_BATCH)
        batches = batches.map(self.batch, num_parallel_calls=hardware.usable_cores())
        return untuned(batches.unbatch())

    def load_arrays(
        self, progress: Callable[[int, int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decodes every example, in natural order.

        Args:
            progress: Called with (examples done, examples in all) from time to time.

        Returns:
            uint8 [n, H, W, C] and int32 [n].

        Raises:
            DataError: A record or an image is damaged; the message names the file.
        """
        images = np.empty((self.num_examples, *self.image_shape), np.uint8)
        labels = np.empty((self.num_examples,), np.int32)
        done = 0
        try:
            with data_errors():
                positions = tf.data.Dataset.range(self.num_examples).batch(_BATCH)
                batches = positions.map(self.batch, num_parallel_calls=hardware.usable_cores())
                for some_images, some_labels in untuned(batches).as_numpy_iterator():
                    after = done + len(some_labels)
                    images[done:after] = some_images
                    labels[done:after] = some_labels
                    done = after
                    if progress is not None:
                        progress(done, self.num_examples)
        except tf.errors.OpError as error:
            raise DataError(self._describe_failure(error, start=done)) from None
        return images, labels

    def _describe_failure(self, error: tf.errors.OpError, *, start: int) -> str:
        """Finds the first example from `start` on that fails, by trying one after another."""
        for position in range(start, self.num_examples):
            try:
                self.decode(*(part[0] for part in _as_tuple(self.read(tf.constant([position])))))
            except tf.errors.OpError as cause:
                return f"example {position} cannot be decoded: {_first_line(cause)}"
        return f"an example cannot be decoded: {_first_line(error)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a data set holds, and where it comes from.

    Attributes:
        name: Of the data set, without version and configuration.
        version: Of its content, empty where there is none, as for a folder.
        fingerprint: SHA-256 over what determines the content, in hexadecimal: name, version,
            features and the name and size of each file of a TFDS set; the relative path and size
            of each image of a folder.
        license: As the source states it, else empty.
        citation: As the source states it, else empty.
        homepage: As the source states it, else empty.
        image_shape: (height, width, channels) of every decoded image.
        class_names: One a class, in the order of the labels.
    """

    name: str
    version: str = ""
    fingerprint: str
    license: str = ""
    citation: str = ""
    homepage: str = ""
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Description):
    """What one kind of storage knows about a data set, before any split is chosen.

    Attributes:
        split: Opens the split of a name; None where there is none, or none with labels.
    """

    split: Callable[[str], Examples | None]


RESIZE_RULE = (
    "bilinear with antialiasing, aspect ratio not kept, rounded half to even, clipped to 0..255"
)
"""What `resize` does, in words, for those who have to repeat it elsewhere."""


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The one rule by which an image gets another size, in training and ever after.

    Bilinear with antialiasing (a triangle filter that widens when it shrinks, as in Pillow), aspect
    ratio not kept, rounded half to even and clipped to 0..255.

    Args:
        image: uint8 [H, W, C] or [n, H, W, C].
        size: (height, width) wanted.

    Returns:
        uint8 of the same rank; the image itself where it has that size already.
    """
    if tuple(image.shape[-3:-1]) == tuple(size):
        return image
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


def python_op(
    function: Callable[..., object], inputs: list[tf.Tensor], dtype: tf.DType
) -> tf.Tensor:
    """`tf.numpy_function` on the CPU whose `DataError`s `data_errors` gives back.

    Args:
        function: Called with NumPy values; returns a NumPy value of `dtype`.
        inputs: Its arguments.
        dtype: Of what it returns.

    Returns:
        One tensor of unknown static shape.
    """

    @functools.wraps(function)
    def marked(*values: np.ndarray) -> object:
        try:
            return function(*values)
        except DataError as error:
            raise ValueError(f"{_OPEN}{error}{_CLOSE}") from None

    with tf.device("CPU"):
        return tf.numpy_function(marked, inputs, dtype, stateful=False)


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Turns what a damaged file raised inside `tf.data` back into its `DataError`.

    Wrap the consumption of any pipeline built on `Examples` with it. Other errors pass unchanged.

    Raises:
        DataError: The message that `read` or `decode` raised, naming the file.
    """
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(re.escape(_OPEN) + "(.*?)" + re.escape(_CLOSE), str(error), re.DOTALL)
        if found is None:
            raise
        raise DataError(found.group(1)) from None


def _as_tuple(parts: tuple[tf.Tensor, ...] | tf.Tensor) -> tuple[tf.Tensor, ...]:
    return parts if isinstance(parts, tuple) else (parts,)


def _first_line(error: tf.errors.OpError) -> str:
    text = error.message.strip().splitlines()[0] if error.message else type(error).__name__
    # TensorFlow puts the name of the node before the message.
    return re.sub(r"^\{\{.*?\}\}\s*", "", text)
