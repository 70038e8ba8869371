"""Classification of texts: a string -> one of several classes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.data.augmentations.drop import dropping
from tfgpu.data.columns import UNSPACED
from tfgpu.data.examples import Examples, data_errors
from tfgpu.data.records import Records, Schema
from tfgpu.data.table_rows import EXTENSIONS as TABLES
from tfgpu.data.table_rows import chunks, is_table
from tfgpu.engine.datasets import untuned
from tfgpu.errors import DataError, RequestError, shown
from tfgpu.models.classification_loss import classification_loss
from tfgpu.tasks.parts.class_report import ClassReport
from tfgpu.tasks.parts.predictor import ClassLines, Predictor, find_files, is_text
from tfgpu.tasks.parts.serving import PROBABILITIES, Serving, likeliest, right, with_softmax
from tfgpu.tasks.task import DataSpec, Reading, Request, Task
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import SHOWN, Outputs, confusion_and_mistakes

UNKNOWN = 1
"""The number of a token that is not in the vocabulary; 0 is padding."""

DROPPED = 0.2
"""Share of the tokens that `--augment=drop` takes for unknown."""

INPUT, TOKENS = "text", "tokens"

_BATCH = 1024  # Texts that are cut at once.
_LONG_ENOUGH = 95  # Percent of the training texts that fit into the length, if nothing is asked.


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The text and the class: those that the user or the set names, else the only ones."""
    texts, labels = schema.of_kind("text"), schema.of_kind("class")
    roles: dict[str, str] = {}
    other_input = False
    if schema.supervised is not None:
        x, y = schema.supervised
        other_input = x not in texts  # Then the only text is a file's name, or a remark.
        if x in texts and y in labels:
            roles = {"x": x, "y": y}
    if len(texts) == 1 and not other_input:
        roles.setdefault("x", texts[0])
    if len(labels) == 1:
        roles.setdefault("y", labels[0])
    roles |= given
    features = schema.features
    # What the user names may be strings of any kind, and numbers of which there are few.
    readable = roles.get("x") in texts or ("x" in given and features[given["x"]].dtype == "string")
    sorts = roles.get("y") in labels or ("y" in given and bool(features[given["y"]].class_names))
    if not readable or not sorts:
        raise RequestError(
            f"{schema.requested!r} is not a text-classification set: it needs a text and a class, "
            f"and has {schema.described}; name them with --features=x=NAME,y=NAME"
        )
    return {"x": roles["x"], "y": roles["y"]}


def read(request: Request) -> Reading:
    """int32 tokens (length,), padded with 0, and int32 labels ()."""
    x, y = request.roles["x"], request.roles["y"]
    feature = request.schema.features[y]
    if len(feature.class_names) < 2:
        raise DataError(
            f"the column {y!r} of {request.schema.requested!r} holds one class only, "
            f"{', '.join(map(repr, feature.class_names)) or 'none'}: there must be at least two "
            "to tell apart"
        )
    request.train.select((x, y))  # Refuses empty cells before it takes long to fit.
    fitted = dict(request.fitted) if request.fitted is not None else fit(request, x)
    layer = vectorization(fitted)
    numbers = None  # Where the labels are whole numbers of any size.
    if feature.kind != "class":
        values = np.array(list(map(int, feature.class_names)), np.int64)
        numbers = tf.constant(values)

    def decode_labels(found: Mapping[str, tf.Tensor]) -> tf.Tensor:
        label = found[y]
        if numbers is not None:
            label = tf.searchsorted(numbers, tf.reshape(label, [-1]))
            label = tf.reshape(label, tf.shape(found[y]))
        return tf.cast(label, tf.int32)

    def cut(texts: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU"):
            tokens = tf.cast(layer(texts), tf.int32)
        return tf.ensure_shape(tokens, [None, fitted["length"]])

    def decode(found: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return cut(found[x][None])[0], decode_labels(found)

    def decode_raw(found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {INPUT: found[x], TOKENS: cut(found[x][None])[0]}

    def examples(split: str, some: Records) -> Examples:
        one = some.select((x, y))
        many = some.select_batch((x, y)) if some.select_batch is not None else None

        def decode_batch(*parts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if many is not None:
                found = many(*parts)
            else:
                dtypes = {x: tf.string, y: tf.int64}
                found = tf.map_fn(
                    lambda parts: _of_dtypes(one(*parts), dtypes),
                    parts,
                    fn_output_signature=dtypes,
                    parallel_iterations=1,
                )
            # A call for many texts costs hardly more than one for a single text.
            return cut(found[x]), decode_labels(found)

        made = some.examples(
            (x, y),
            decode,
            y_names=(y,),
            decode_y=decode_labels,
            raw_names=(x,),
            decode_raw=decode_raw,
        )
        return dataclasses.replace(made, decode_batch=decode_batch)

    spec = DataSpec(
        x=tf.TensorSpec([fitted["length"]], tf.int32),
        y=tf.TensorSpec((), tf.int32),
        class_names=feature.class_names,
        fitted=fitted,
    )
    return Reading(spec=spec, examples=examples, notes=(_note(fitted),))


def _of_dtypes(
    found: Mapping[str, tf.Tensor], dtypes: Mapping[str, tf.DType]
) -> dict[str, tf.Tensor]:
    return {name: tf.cast(found[name], dtype) for name, dtype in dtypes.items()}


def _note(fitted: Mapping[str, Any]) -> str:
    unit = "words" if fitted["tokens"] == "word" else "characters"
    return (
        f"texts: {len(fitted['vocabulary']):,} {unit} in the vocabulary, the first "
        f"{fitted['length']} of each text are read, and {fitted['longer']:.1%} of the training "
        "texts are longer"
    )


def fit(request: Request, x: str) -> dict[str, Any]:
    """The vocabulary and the length, from the training texts alone.

    Args:
        request: Its option `tokens` may be None: characters, where most training texts are of a
            language that writes no spaces.
        x: The feature.

    Returns:
        "tokens", "vocabulary" (the most frequent first), "length" in tokens, "longer", the share of
        the training texts that are, and "column", the name of the feature.

    Raises:
        DataError: A record is damaged, or there is not one token.
        RequestError: An option is out of its range.
    """
    most, length = request.options["vocabulary"], request.options["length"]
    if most < 1 or length < 0:
        name, value = ("vocabulary", most) if most < 1 else ("length", length)
        raise RequestError(f"--task_options={name}={value}: must be at least {int(most < 1)}")
    texts = _texts(request.train, x)
    tokens = request.options.get("tokens") or _tokens(texts)
    with data_errors(), tf.device("CPU"):
        # Two numbers are no tokens: padding and unknown.
        layer = keras.layers.TextVectorization(max_tokens=most + 2, split=_split(tokens))
        layer.adapt(texts)
        # Without its first two; cut by frequency, ties by the order of the strings.
        vocabulary = [str(token) for token in layer.get_vocabulary()[2:]]
        if not vocabulary:
            raise DataError(
                f"the training texts of {request.schema.requested!r} hold not one token: is "
                f"{x!r} the column of the texts?"
            )
        whole = keras.layers.TextVectorization(
            split=_split(tokens), vocabulary=vocabulary, ragged=True
        )
        lengths = np.concatenate([whole(some).row_lengths().numpy() for some in texts])
    if not length:
        # To a multiple of 8, which kernels like.
        length = max(8, -(-int(np.percentile(lengths, _LONG_ENOUGH)) // 8) * 8)
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "length": length,
        "longer": float((lengths > length).mean()),
        "column": x,
    }


def vectorization(fitted: Mapping[str, Any]) -> keras.layers.TextVectorization:
    """Keras' layer from strings (n,) to int64 tokens (n, length)."""
    with tf.init_scope(), tf.device("CPU"):
        return keras.layers.TextVectorization(
            split=_split(fitted["tokens"]),
            output_sequence_length=fitted["length"],
            vocabulary=list(fitted["vocabulary"]),
            name="vectorization",
        )


def _split(tokens: str) -> str:
    return "whitespace" if tokens == "word" else "character"


def _texts(train: Records, x: str) -> tf.data.Dataset:
    """The texts of training, in batches of strings."""
    examples = train.examples((x,), lambda found: (found[x], ()))
    if train.select_batch is not None:
        many = train.select_batch((x,))
        examples = dataclasses.replace(examples, decode_batch=lambda *p: (many(*p)[x], ()))
    positions = tf.data.Dataset.range(train.num_examples).batch(_BATCH)
    return untuned(positions.map(lambda some: examples.batch(some)[0]))


def _tokens(texts: tf.data.Dataset) -> str:
    """What the language of most texts asks for, by the first thousand of them."""
    with data_errors():
        some = next(iter(texts)).numpy()
    unspaced = [UNSPACED.search(text.decode(errors="replace")) is not None for text in some]
    return "character" if np.mean(unspaced) > 0.5 else "word"


# Of each position: an odd number, so that the fraction of its product with an even draw is even.
_FACTORS = 2 * np.random.RandomState(0).randint(256, 2048, 1 << 14) + 1


def _drop(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes some tokens for unknown. One draw serves all tokens of a text, by its products."""
    length = x.shape[1]
    factors = tf.constant(np.resize(_FACTORS, length), tf.float32)
    product = draws[:, :1] * factors
    dropped = (product - tf.floor(product) < DROPPED) & (x > UNKNOWN)
    return tf.where(dropped, tf.fill(tf.shape(x), UNKNOWN), x), y


AUGMENT = {"drop": dropping(_drop)}


class TextReport(ClassReport):
    """That of classes, with texts in TensorBoard as the model sees them."""

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        rows = [
            (self.spec.class_names[int(label)], self._text(tokens))
            for tokens, label in zip(x[:SHOWN], np.reshape(y, [-1]), strict=False)
        ]
        return {"batch": Picture(_table(("class", "tokens"), rows), "Of a training batch.")}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`."""
        kept = list(outputs)
        shown = dict(super().predictions(iter(kept)))
        names = self.spec.class_names
        _, mistakes = confusion_and_mistakes(iter(kept), count=SHOWN)
        rows = [
            (
                names[each.label],
                f"{names[each.predicted]} {each.confidence:.1%}",
                self._text(each.x),
            )
            for each in mistakes
        ]
        if rows:
            description = "The mistakes the model is surest of: true class, predicted class."
            shown["mistakes"] = Picture(_table(("is", "predicted", "tokens"), rows), description)
        return shown

    def _text(self, tokens: np.ndarray) -> str:
        """The tokens of a text, the unknown ones as "[UNK]"."""
        words = self.spec.fitted["vocabulary"]
        shown = [words[token - 2] if token > UNKNOWN else "[UNK]" for token in tokens if token]
        return (" " if self.spec.fitted["tokens"] == "word" else "").join(shown)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclasses.dataclass(frozen=True)
class _Text:
    """A text to be classified; shown as where it stands."""

    place: str
    text: str

    def __str__(self) -> str:
        return self.place


class TextPredictor(ClassLines, Predictor):
    """Classifies the rows of tables, and the lines of text files and of standard input."""

    extensions = (*TABLES, ".txt")
    unit = "texts"

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        layer = vectorization(spec.fitted)
        # As a graph, a call takes an eighth of the time: there is one for each text.
        self._cut = tf.function(layer, input_signature=[tf.TensorSpec([None], tf.string)])

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """See `Predictor.find`; "-" stands for texts, one a line."""
        for argument in arguments:
            if argument == "-":
                yield from _of_lines("-", sys.stdin)
                continue
            for file in find_files([argument], self.extensions, unit=self.unit, left=self.left):
                if isinstance(file, DataError):
                    yield file
                    continue
                try:
                    if is_table(file):
                        yield from self._of_table(file)
                    else:
                        with open(file, encoding="utf-8-sig") as lines:
                            yield from _of_lines(file, lines)
                except DataError as error:
                    yield error
                except UnicodeDecodeError:
                    yield DataError(f"{shown(file)} is not UTF-8: convert it first")
                except OSError as error:
                    yield DataError(f"{shown(file)} cannot be read: {error.strerror or error}")

    def _of_table(self, file: str) -> Iterator[Any]:
        column = self.spec.fitted["column"]
        for names, rows, lines in chunks(file):
            if column not in names:
                raise DataError(
                    f"{shown(file)} has no column {column!r}, which the model was trained on; it "
                    f"has {', '.join(names)}"
                )
            at = names.index(column)
            for row, line in zip(rows, lines, strict=True):
                place = f"{file}:{line}"
                if not isinstance(row[at], str):
                    yield DataError(f"{shown(place)}: the column {column!r} holds no text")
                elif row[at].strip():
                    yield _Text(place, row[at])
                else:
                    yield DataError(f"{shown(place)}: the cell of the column {column!r} is empty")

    def to_json(self, item: Any) -> Any:
        """See `Predictor.to_json`."""
        return dataclasses.astuple(item)

    def from_json(self, value: Any) -> Any:
        """See `Predictor.from_json`."""
        return _Text(*value)

    def load(self, item: Any) -> np.ndarray:
        """See `Predictor.load`: int32 (length,)."""
        with tf.device("CPU"):
            tokens: np.ndarray = self._cut(tf.constant([item.text]))[0].numpy()
        return tokens.astype(np.int32)


def _of_lines(file: str, lines: Iterable[str]) -> Iterator[_Text | DataError]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        # Standard input gives bytes that are not UTF-8 as surrogates; a file is refused as a whole.
        if is_text(line):
            yield _Text(place, line.strip())
        else:
            yield DataError(f"{shown(place)} is not UTF-8: convert it first")


def _serve(spec: DataSpec, kind: str) -> Serving:
    """Strings in for what runs on TensorFlow; for the others, tokens and the vocabulary."""
    strings = kind in ("keras", "saved_model")

    def model(trained: keras.Model) -> keras.Model:
        if strings:
            inputs = keras.Input((), dtype="string", name=INPUT)
            tokens = vectorization(spec.fitted)(inputs)
        else:
            inputs = tokens = keras.Input(spec.x.shape, dtype="int32", name=TOKENS)
        logits = trained(keras.ops.cast(tokens, "int32"), training=False)
        probabilities = keras.layers.Softmax(dtype="float32", name=PROBABILITIES)(logits)
        return keras.Model(inputs, probabilities)

    fitted = spec.fitted
    return Serving(
        inputs={INPUT: tf.TensorSpec([], tf.string)} if strings else {TOKENS: spec.x},
        model=model,
        reference=with_softmax,
        outputs=(PROBABILITIES,),
        measure="accuracy",
        score=right,
        decide=likeliest,
        unit="a probability",
        files={"vocabulary.json": json.dumps(fitted["vocabulary"], ensure_ascii=False) + "\n"},
        preprocessing={
            "input": {
                "keras, saved_model": f"{INPUT}: strings in UTF-8",
                "onnx, litert": f"{TOKENS}: int32, batch x {fitted['length']}",
            },
            "tokens": {
                "standardize": "ASCII letters to lower case, ASCII punctuation away",
                "split": "at white space" if fitted["tokens"] == "word" else "into characters",
                "numbers": "2 + the position in vocabulary.json; 1 for what is not in it",
                "length": f"the first {fitted['length']}, padded at the end with 0",
            },
            "output": PROBABILITIES,
        },
    )


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    few = num_examples < 2000
    return {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        # Far above what images take: a bag of n-grams has more weights than texts have words.
        "weight_decay": 1.0,
        "batch_size": 32 if few else 128,
        "epochs": 15 if few else 5,
        "augment": "drop",
    }


def _space(hp: Any) -> dict[str, Any]:
    return {
        "optimizer": hp.Choice("optimizer", ["adamw"]),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log", default=3e-3),
        "weight_decay": hp.Float("weight_decay", 1e-2, 3.0, sampling="log", default=1.0),
        "batch_size": hp.Choice("batch_size", [32, 64, 128, 256], default=128),
        "augment": hp.Choice("augment", ["none", "drop"], default="drop"),
        "width": hp.Choice("width", [0.5, 1.0, 2.0], default=1.0),
        "depth": hp.Int("depth", 1, 3, default=2),
    }


TASK = Task(
    name="text",
    read=read,
    models={name: f"tfgpu.models.text:{name}" for name in ("bag", "convolution", "transformer")},
    loss=lambda spec, settings: classification_loss(
        num_classes=spec.num_classes, label_smoothing=settings["label_smoothing"]
    ),
    metrics=lambda spec: ["accuracy"],
    objective="accuracy",
    maximize=True,
    unit="texts",
    choose=choose,
    augment=AUGMENT,
    arguments=lambda spec: {
        "vocabulary_size": len(spec.fitted["vocabulary"]) + 2,
        "length": spec.fitted["length"],
        "num_classes": spec.num_classes,
    },
    outputs=lambda spec: (spec.num_classes,),
    recipe=_recipe,
    settings=frozenset({"label_smoothing", "class_weight", "target", "tokens"}),
    options={"vocabulary": 20000, "length": 0},
    report=TextReport,
    predict=TextPredictor,
    serve=_serve,
    space=_space,
)
