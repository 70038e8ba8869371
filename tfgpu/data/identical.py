"""Inputs that are in two splits at once: figures on what was trained on say little of the new."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import Examples, data_errors

MOST_BYTES = 1 << 30
"""Of decoded examples that are read for this alone: seconds on two cores."""

_SIZE = 16  # Bytes of a digest: that two inputs share one by chance is out of the question.


def digests(x: Any) -> np.ndarray:
    """A digest of every input.

    Args:
        x: An array (n, ...), or a dict of such arrays.

    Returns:
        Bytes (n,).
    """
    leaves = [np.ascontiguousarray(leaf) for leaf in tf.nest.flatten(x)]
    found = np.empty(len(leaves[0]), f"V{_SIZE}")
    for i in range(len(found)):
        digest = hashlib.blake2b(digest_size=_SIZE)
        for leaf in leaves:
            digest.update(leaf[i].tobytes())
        found[i] = digest.digest()
    return found


def read_digests(examples: Examples) -> np.ndarray:
    """`digests` of a split that is read for it, a batch at a time.

    Raises:
        DataError: A record is damaged.
    """
    with data_errors():
        batches = examples.dataset().batch(256).as_numpy_iterator()
        found = [digests(x) for x, _ in batches]
    return np.concatenate(found) if found else np.empty(0, f"V{_SIZE}")


def count(some: np.ndarray, others: np.ndarray) -> int:
    """How many of `some` are among `others`, both of `digests`."""
    known = set(others.tolist())
    return sum(digest in known for digest in some.tolist())
