"""Random access to the examples of a split, whatever they are stored in.

A batch of training is a pure function of the seed, the epoch and the step, so every source of
data must give any example at any time at O(1). `Examples` is that: `read` fetches raw records by
position, `decode` makes one of them (x, y). Both run inside `tf.data`, so a stream and a resident
array come from the same two functions and hold the same bytes.

x and y are a tensor each, or dicts of tensors (of dicts, ...). Every tensor has a shape that is the
same for all examples: what varies in length is padded in `decode`, with a mask beside it.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.engine.datasets import untuned
from tfgpu.errors import DataError, RequestError
from tfgpu.machine import hardware

# How many examples `dataset` and `load_arrays` read at once: many, since a call of Python from a
# graph costs as much as dozens of records; few enough for large pictures (224 x 224 x 3: 38 MB).
_BATCH = 256

# TensorFlow turns an exception of a Python function inside a graph into text; our message
# travels between these marks and is found again by `data_errors`.
_OPEN, _CLOSE = "<<tfgpu data: ", " :tfgpu data>>"

Read = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]
"""int64 [n] positions -> the raw records, one or more tensors that are batch-first, [n, ...]."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Random access to the examples of one split.

    Attributes:
        num_examples: How many examples there are; positions run from 0 below it.
        read: int64 [n] positions -> the raw records, one or more tensors that are batch-first,
            [n, ...]. Usable inside a `tf.data` map.
        decode: The components of ONE raw record -> (x, y), tensors or dicts of them. Usable inside
            a `tf.data` map; the static shapes are set.
        decode_y: The same for y alone, where that takes less; None decodes both.
        decode_raw: The components of ONE raw record -> a dict of what an exported model takes,
            where that is not x; None: it is x.
        decode_batch: What `decode` does for the components of MANY raw records, batch-first, where
            that takes less than one after another; None: one after another.
        notes: Lines for the user: what is unusual in this split.
    """

    num_examples: int
    read: Read
    decode: Callable[..., tuple[Any, Any]]
    decode_y: Callable[..., Any] | None = None
    decode_raw: Callable[..., dict[str, tf.Tensor]] | None = None
    decode_batch: Callable[..., tuple[Any, Any]] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(cls, x: Any, y: Any) -> "Examples":
        """Examples that lie in memory.

        Args:
            x: An array (n, ...) of numbers, or a dict of such arrays.
            y: The same.
        """
        with tf.device("CPU"):
            arrays = tf.nest.map_structure(tf.constant, (x, y))
        flat = tf.nest.flatten(arrays)

        def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("CPU"):
                return tuple(tf.gather(array, positions) for array in flat)

        def decode(*parts: tf.Tensor) -> Any:
            return tf.nest.pack_sequence_as(arrays, parts)

        return cls(num_examples=len(flat[0]), read=read, decode=decode)

    @functools.cached_property
    def element_spec(self) -> tuple[Any, Any]:
        """`tf.TensorSpec`s of the x and the y of one example."""
        with tf.init_scope():
            one = tf.data.Dataset.from_tensors(tf.zeros([1], tf.int64))
            return one.map(self._decode_first).element_spec

    def _decode_first(self, positions: tf.Tensor) -> Any:
        return self.decode(*(part[0] for part in _as_tuple(self.read(positions))))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every decoded image, where x is an image."""
        height, width, channels = self.element_spec[0].shape.as_list()
        return height, width, channels

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded examples."""
        specs = tf.nest.flatten(self.element_spec)
        each = sum(int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.size for spec in specs)
        return self.num_examples * each

    def take(self, positions: np.ndarray) -> "Examples":
        """Returns a view of some of the examples: its position i is positions[i] here.

        Args:
            positions: Integers [n], each from 0 below `num_examples`.

        Raises:
            IndexError: A position lies outside.
        """
        read = read_subset(self.read, self.num_examples, positions)
        return dataclasses.replace(self, num_examples=len(positions), read=read)

    def batch(self, positions: tf.Tensor) -> tuple[Any, Any]:
        """Reads and decodes many examples; usable inside a `tf.data` map.

        Run several batches in parallel rather than single examples: TensorFlow's overhead for each
        call of a mapped function is more than it takes to decode a small picture (CIFAR-10, 2
        cores: 2.7 s against 4.3 s for 50,000).

        Args:
            positions: int64 [n].

        Returns:
            x and y, every tensor [n, ...].
        """
        if self.decode_batch is not None:
            x, y = self.decode_batch(*_as_tuple(self.read(positions)))
            return x, y
        x, y = tf.map_fn(
            lambda parts: self.decode(*parts),
            _as_tuple(self.read(positions)),
            fn_output_signature=tf.nest.map_structure(lambda spec: spec.dtype, self.element_spec),
            parallel_iterations=1,
        )
        return x, y

    def dataset(self, positions: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded examples one by one, in the order of the positions.

        Args:
            positions: Scalars int64; every example in its natural order when None.

        Returns:
            Elements (x, y), in the order of the positions although batches are read and decoded in
            parallel.
        """
        if positions is None:
            positions = tf.data.Dataset.range(self.num_examples)
        spec = self.element_spec

        def batch(some: tf.Tensor) -> Any:
            # `map_fn` keeps no more of a shape than its rank, where a batch may be empty.
            return tf.nest.map_structure(
                lambda leaf, one: tf.ensure_shape(leaf, [None, *one.shape]), self.batch(some), spec
            )

        batches = positions.batch(_BATCH).map(batch, num_parallel_calls=hardware.usable_cores())
        return untuned(batches.unbatch())

    def load_arrays(self, progress: Callable[[int, int], object] | None = None) -> tuple[Any, Any]:
        """Decodes every example, in natural order.

        Args:
            progress: Called with (examples done, examples in all) from time to time.

        Returns:
            x and y, every tensor an array [n, ...].

        Raises:
            DataError: A record is damaged; the message names the file.
            RequestError: The shape of a tensor is not the same for all examples.
        """
        spec = self.element_spec
        for one in tf.nest.flatten(spec):
            if None in one.shape.as_list():
                raise RequestError(
                    f"examples differ in shape ({one.shape}): bring them to one, or pad them and "
                    "give a mask beside them"
                )
        arrays = tf.nest.map_structure(
            lambda one: np.empty((self.num_examples, *one.shape), one.dtype.as_numpy_dtype), spec
        )
        flat = tf.nest.flatten(arrays)
        done = 0
        try:
            with data_errors():
                positions = tf.data.Dataset.range(self.num_examples).batch(_BATCH)
                batches = positions.map(self.batch, num_parallel_calls=hardware.usable_cores())
                for some in untuned(batches).as_numpy_iterator():
                    parts = tf.nest.flatten(some)
                    after = done + len(parts[0])
                    for array, part in zip(flat, parts, strict=True):
                        array[done:after] = part
                    done = after
                    if progress is not None:
                        progress(done, self.num_examples)
        except tf.errors.OpError as error:
            raise DataError(self._describe_failure(error, start=done)) from None
        x, y = arrays
        return x, y

    def load_y(self) -> Any:
        """Decodes the y of every example, in natural order; see `load_arrays`."""
        alone = self.decode_y
        if alone is None:
            return self.load_arrays()[1]

        def decode(*parts: tf.Tensor) -> Any:
            return (), alone(*parts)

        return dataclasses.replace(self, decode=decode, decode_batch=None).load_arrays()[1]

    def _describe_failure(self, error: tf.errors.OpError, *, start: int) -> str:
        """Finds the first example from `start` on that fails, by trying one after another."""
        for position in range(start, self.num_examples):
            try:
                self._decode_first(tf.constant([position]))
            except tf.errors.OpError as cause:
                return f"example {position} cannot be decoded: {_first_line(cause)}"
        return f"an example cannot be decoded: {_first_line(error)}"


def read_subset(read: Read, count: int, positions: np.ndarray) -> Read:
    """Reads some of the records by their position among themselves.

    Args:
        read: Reads `count` records.
        count: How many there are.
        positions: Integers [n], each from 0 below `count`.

    Raises:
        IndexError: A position lies outside.
    """
    positions = np.asarray(positions, np.int64)
    if positions.size and not 0 <= positions.min() <= positions.max() < count:
        raise IndexError(f"positions must lie in [0, {count})")
    with tf.device("CPU"):
        table = tf.constant(positions)

    def read_some(subset: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Records live in host memory: a GPU must not gather the positions for them.
        with tf.device("CPU"):
            return read(tf.gather(table, subset))

    return read_some


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
