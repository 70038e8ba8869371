"""Models of texts: numbers of tokens in, logits over classes out.

Tokens are int32, (batch, length): 0 is padding, which changes no output, 1 a token that is not in
the vocabulary. No model has dropout: each replica would draw masks of its own, and N replicas would
not be one. `--augment=drop` is its part, since it draws numbers for each example.
"""

from __future__ import annotations

import keras

import tfgpu

ops, layers = keras.ops, keras.layers

BAG_UNITS, BUCKETS = 16, 2**17
CONVOLUTION_UNITS, CONVOLUTION_WIDTHS = 64, (2, 3, 4)
TRANSFORMER_UNITS, HEADS = 64, 4
# Of the hash of n-grams. Odd, so that it has no factor in common with the number of buckets; small
# enough for int32; and near BUCKETS / (8 + 0.618...), so that pairs of frequent words, which have
# small numbers, do not meet: F * k % BUCKETS is far from 0 for each small k. With 16383, the
# largest that int32 allows, the pairs (a, b) and (a + 8, b + 8) would always share a bucket.
FACTOR = 15209


def bag(
    *, vocabulary_size: int, length: int, num_classes: int, width: float = 1.0, depth: int = 2
) -> tfgpu.Model:
    """The mean of embeddings of tokens and of n-grams, and a linear layer.

    Source: Joulin et al., "Bag of Tricks for Efficient Text Classification", EACL 2017: n-grams
    share a table of fixed size by a hash. The sum is divided by the square root of the number of
    embeddings in it, which keeps its variance, where the paper takes the mean.

    Args:
        vocabulary_size: Different numbers of tokens, with 0 and 1.
        length: Tokens of a text.
        num_classes: Classes.
        width: Multiplies the units of an embedding, 16.
        depth: Tokens of the longest n-gram; 1 is a bag of tokens.

    Returns:
        A model from int32 tokens (batch, length) to float32 logits (batch, num_classes).

    Raises:
        ValueError: `width` or `depth` is not positive, or `depth` exceeds `length`.
    """
    _check("bag", width, depth)
    if depth > length:
        raise ValueError(f"bag with n-grams of {depth} tokens has texts of {length} tokens only")
    units = max(1, round(BAG_UNITS * width))
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    present = ops.cast(ops.not_equal(tokens, 0), "float32")
    embedded = layers.Embedding(vocabulary_size, units, name="embedding")(tokens)
    total = ops.sum(embedded * ops.expand_dims(present, -1), axis=1)
    count = ops.sum(present, axis=1, keepdims=True)
    hashed, inside = tokens, present
    for n in range(2, depth + 1):
        hashed = (ops.mod(hashed[:, :-1], BUCKETS) * FACTOR) % BUCKETS + tokens[:, n - 1 :]
        inside = inside[:, :-1] * present[:, n - 1 :]
        # From 0: an n-gram that no training text has adds nothing.
        table = layers.Embedding(
            BUCKETS, units, embeddings_initializer="zeros", name=f"embedding_{n}"
        )
        grams = table(ops.mod(hashed, BUCKETS))
        total = total + ops.sum(grams * ops.expand_dims(inside, -1), axis=1)
        count = count + ops.sum(inside, axis=1, keepdims=True)
    x = total / ops.sqrt(ops.maximum(count, 1.0))
    return _classifier(tokens, x, num_classes, name="bag")


def convolution(
    *, vocabulary_size: int, length: int, num_classes: int, width: float = 1.0, depth: int = 3
) -> tfgpu.Model:
    """Convolutions of several widths over embeddings, and the maximum of each over the text.

    Source: Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.

    Args:
        vocabulary_size: Different numbers of tokens, with 0 and 1.
        length: Tokens of a text.
        num_classes: Classes.
        width: Multiplies the units of an embedding and the filters of each width, 64.
        depth: How many widths, from 2 tokens up.

    Returns:
        A model from int32 tokens (batch, length) to float32 logits (batch, num_classes).

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    _check("convolution", width, depth)
    units = max(8, round(CONVOLUTION_UNITS * width / 8) * 8)
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    present = ops.expand_dims(ops.not_equal(tokens, 0), -1)
    embedded = layers.Embedding(vocabulary_size, units, name="embedding")(tokens)
    embedded = embedded * ops.cast(present, embedded.dtype)
    found = []
    for size in range(2, depth + 2):
        x = layers.Conv1D(
            units, size, padding="same", activation="relu", name=f"convolution_{size}"
        )(embedded)
        # After ReLU nothing is below 0, the value that padding gets.
        found.append(ops.max(x * ops.cast(present, x.dtype), axis=1))
    x = layers.Concatenate(name="join")(found) if len(found) > 1 else found[0]
    return _classifier(tokens, x, num_classes, name="convolution")


def transformer(
    *, vocabulary_size: int, length: int, num_classes: int, width: float = 1.0, depth: int = 2
) -> tfgpu.Model:
    """An encoder with learnt positions, normalised before each part, and the mean over the text.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with the layer normalisation
    of Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020.

    Args:
        vocabulary_size: Different numbers of tokens, with 0 and 1.
        length: Tokens of a text.
        num_classes: Classes.
        width: Multiplies the units, 64, of which 4 heads have a quarter each.
        depth: Blocks.

    Returns:
        A model from int32 tokens (batch, length) to float32 logits (batch, num_classes).

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    _check("transformer", width, depth)
    units = max(8, round(TRANSFORMER_UNITS * width / 8) * 8)
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    present = ops.not_equal(tokens, 0)
    x = layers.Embedding(vocabulary_size, units, name="embedding")(tokens)
    # (1, length): 0, 1, ..., made from the input. Called with a constant, the layer would not be
    # part of the model, and would not be trained.
    places = ops.cumsum(ops.ones_like(ops.sum(tokens, axis=0, keepdims=True)), axis=1) - 1
    x = x + layers.Embedding(length, units, name="positions")(places)
    seen = ops.expand_dims(present, 1)  # (batch, 1, length): by every token alike.
    for number in range(1, depth + 1):
        y = layers.LayerNormalization(name=f"block{number}_norm1")(x)
        attention = layers.MultiHeadAttention(HEADS, units // HEADS, name=f"block{number}_heads")
        x = x + attention(y, y, attention_mask=seen)
        y = layers.LayerNormalization(name=f"block{number}_norm2")(x)
        y = layers.Dense(2 * units, activation="gelu", name=f"block{number}_dense1")(y)
        x = x + layers.Dense(units, name=f"block{number}_dense2")(y)
    x = layers.LayerNormalization(name="norm")(x)
    there = ops.cast(ops.expand_dims(present, -1), "float32")
    total = ops.sum(ops.cast(x, "float32") * there, axis=1)
    x = total / ops.maximum(ops.sum(there, axis=1), 1.0)
    return _classifier(tokens, x, num_classes, name="transformer")


def _check(name: str, width: float, depth: int) -> None:
    if width <= 0 or depth < 1:
        raise ValueError(f"{name} needs a width above 0 and a depth of 1 or more: {width}, {depth}")


def _classifier(
    tokens: keras.KerasTensor, x: keras.KerasTensor, num_classes: int, *, name: str
) -> tfgpu.Model:
    x = layers.Dense(num_classes, name="logits")(x)
    # Softmax and its gradient lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    return tfgpu.Model(tokens, outputs, name=name)
