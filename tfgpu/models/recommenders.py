"""Models of users and items: ratings of pairs, and scores of all items for a user.

A user and an item are int32 numbers of the tables that were fitted on the training split; 0 stands
for one that is not in them. Row 0 of every table is zero and stays so, since no training example
has it: a new user gets what holds for everybody.

Models of ratings take `user` (batch,) and `item` (batch, candidates), any number of candidates for
each user, and give (batch, candidates). Models of retrieval take `user` (batch,) and `history`
(batch, length), items with 0 for padding, and give scores (batch, items + 1) of all items.

No model has dropout: each replica would draw masks of its own, and N replicas would not be one.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import tfgpu
from tfgpu.errors import RequestError

ops, layers = keras.ops, keras.layers

FACTORS = 64
RANKING_UNITS = 32
TOWER_UNITS = 64

NEVER = -1e9
"""The score of what is never to be retrieved."""


def units_of(units: int, width: float) -> int:
    """The units of an embedding, from what `width` multiplies."""
    return max(1, round(units * width))


def _check(name: str, width: float, depth: int, least: int) -> None:
    if width <= 0 or depth < least:
        raise ValueError(
            f"{name} needs a width above 0 and a depth of {least} or more: {width}, {depth}"
        )


def _table(rows: int, units: int, name: str, *, deviation: float) -> keras.layers.Embedding:
    """An embedding whose row 0 is zero."""
    table = layers.Embedding(
        rows,
        units,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=deviation),
        name=name,
    )
    table.build(None)
    values = np.array(ops.convert_to_numpy(table.embeddings))
    values[0] = 0
    table.embeddings.assign(values)
    return table


def _pair() -> tuple[Any, Any]:
    user = keras.Input((), dtype="int32", name="user")
    return user, keras.Input((None,), dtype="int32", name="item")


def _biases(user: Any, item: Any, num_users: int, num_items: int) -> Any:
    """(batch, candidates): what the user adds to every rating, and the item to all of its own."""
    of_user = _table(num_users, 1, "user_bias", deviation=0.0)(user)
    of_item = _table(num_items, 1, "item_bias", deviation=0.0)(item)
    return of_user + ops.squeeze(of_item, axis=-1)


def factors(*, num_users: int, num_items: int, mean: float, width: float = 1.0) -> tfgpu.Model:
    """The mean, a bias of the user, one of the item, and the product of their factors.

    Source: Y. Koren, R. Bell and C. Volinsky, "Matrix Factorization Techniques for Recommender
    Systems", Computer 42(8), 2009, equation 5. The regularisation is the optimizer's weight decay.

    Args:
        num_users: Rows of the table of users, with row 0.
        num_items: Rows of the table of items, with row 0.
        mean: Of the training ratings.
        width: Multiplies the number of factors, 64.

    Returns:
        A model from `user` (batch,) and `item` (batch, candidates) to ratings (batch, candidates).

    Raises:
        ValueError: `width` is not positive.
    """
    _check("factors", width, 1, 1)
    units = units_of(FACTORS, width)
    user, item = _pair()
    of_user = _table(num_users, units, "user_factors", deviation=0.1)(user)
    of_item = _table(num_items, units, "item_factors", deviation=0.1)(item)
    product = layers.Dot(axes=(1, 2), name="product")([of_user, of_item])
    total = product + _biases(user, item, num_users, num_items)
    rating = layers.Rescaling(1.0, offset=mean, dtype="float32", name="rating")(total)
    return tfgpu.Model({"user": user, "item": item}, rating, name="factors")


@keras.saving.register_keras_serializable(package="tfgpu")
class PairInteraction(keras.layers.Layer):
    """keras-rs' `DotInteraction` of features of a user with those of each candidate.

    Takes features (batch, features, units) of users and (batch, candidates, features, units) of
    items; gives (batch, candidates, pairs), the products of all pairs of features.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._interaction = _keras_rs("--model=ranking").layers.DotInteraction(
            dtype=self.dtype_policy
        )

    def call(self, of_user: Any, of_item: Any) -> Any:
        """See the class."""
        features, units = of_user.shape[1], of_user.shape[2]
        candidates = ops.shape(of_item)[1]
        of_user = ops.repeat(ops.expand_dims(of_user, 1), candidates, axis=1)
        every = ops.concatenate([of_user, of_item], axis=2)
        flat = ops.reshape(every, (-1, 2 * features, units))
        pairs = self._interaction([flat[:, i] for i in range(2 * features)])
        return ops.reshape(pairs, (-1, candidates, features * (2 * features - 1)))

    def compute_output_shape(self, of_user_shape: Any, of_item_shape: Any) -> Any:
        """See the class."""
        features = of_user_shape[1]
        return (*of_item_shape[:2], features * (2 * features - 1))


def _keras_rs(what: str) -> Any:
    try:
        import keras_rs
    except ImportError:
        raise RequestError(f"{what} needs keras-rs: pip install 'tfgpu[recommendation]'") from None
    return keras_rs


def ranking(
    *, num_users: int, num_items: int, mean: float, width: float = 1.0, depth: int = 1
) -> tfgpu.Model:
    """Products of all pairs of features of user and item, and a small network over them.

    Source: M. Naumov et al., "Deep Learning Recommendation Model for Personalization and
    Recommendation Systems", 2019: the interaction, of two features of each side. The biases are
    those of `factors`.

    Args:
        num_users: Rows of the table of users, with row 0.
        num_items: Rows of the table of items, with row 0.
        mean: Of the training ratings.
        width: Multiplies the units of a feature, 32.
        depth: Hidden layers.

    Returns:
        A model from `user` (batch,) and `item` (batch, candidates) to ratings (batch, candidates).

    Raises:
        ValueError: `width` is not positive, or `depth` below 1.
        RequestError: keras-rs is not installed.
    """
    _check("ranking", width, depth, 1)
    _keras_rs("--model=ranking")
    units, features = units_of(RANKING_UNITS, width), 2
    user, item = _pair()
    of_user = _table(num_users, features * units, "user_features", deviation=0.1)(user)
    of_item = _table(num_items, features * units, "item_features", deviation=0.1)(item)
    split_user = ops.reshape(of_user, (-1, features, units))
    split_item = layers.TimeDistributed(layers.Reshape((features, units)), name="split")(of_item)
    x = PairInteraction(name="interaction")(split_user, split_item)
    for level in range(depth):
        x = layers.Dense(2 * units, activation="relu", name=f"hidden{level}")(x)
    x = layers.Dense(1, kernel_initializer="zeros", name="correction")(x)
    total = ops.squeeze(x, axis=-1) + _biases(user, item, num_users, num_items)
    rating = layers.Rescaling(1.0, offset=mean, dtype="float32", name="rating")(total)
    return tfgpu.Model({"user": user, "item": item}, rating, name="ranking")


def two_tower(*, num_users: int, num_items: int, width: float = 1.0, depth: int = 0) -> tfgpu.Model:
    """A vector of the user times the vector of each item, plus a bias of the item.

    The tower of the user adds an embedding of the user and one of the items in the history, summed
    over the square root of their number; the tower of the items is a table, the weights `items`.
    Where items are dropped from the history (`--augment=drop`), the model learns to find them
    again, as D. Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018,
    have it.

    Args:
        num_users: Rows of the table of users, with row 0.
        num_items: Rows of the table of items, with row 0.
        width: Multiplies the units of both towers, 64.
        depth: Hidden layers of the tower of the user.

    Returns:
        A model from `user` (batch,) and `history` (batch, length) to scores (batch, num_items),
        of which the first means nothing.

    Raises:
        ValueError: `width` is not positive, or `depth` negative.
    """
    _check("two_tower", width, depth, 0)
    units = units_of(TOWER_UNITS, width)
    user = keras.Input((), dtype="int32", name="user")
    history = keras.Input((None,), dtype="int32", name="history")
    known = ops.cast(ops.greater(history, 0), "float32")
    past = _table(num_items, units, "history_items", deviation=0.1)(history)
    # Without this, padding would train row 0.
    past = past * ops.cast(ops.expand_dims(known, -1), past.dtype)
    count = ops.maximum(ops.sum(known, axis=1, keepdims=True), 1.0)
    x = ops.sum(past, axis=1) * ops.cast(ops.rsqrt(count), past.dtype)
    x = x + _table(num_users, units, "users", deviation=0.01)(user)
    for level in range(depth):
        x = layers.Dense(units, activation="tanh", name=f"hidden{level}")(x)
    scores = layers.Dense(
        num_items,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.1),
        dtype="float32",
        name="items",
    )(x)
    return tfgpu.Model({"user": user, "history": history}, scores, name="two_tower")
