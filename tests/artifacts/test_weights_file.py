"""Weights from files: by name and shape, all else named, nothing else touched."""

import zipfile

import h5py
import keras
import numpy as np
import pytest

import tfgpu
from tfgpu.artifacts.weights_file import take_weights
from tfgpu.errors import ModelFileError, RequestError

# Of Keras' own, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network(*, classes=3, last="logits", seed=0, more=False):
    """Layers of several weights, one within another, moving statistics and random numbers."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((6, 4))
    x = layers.MultiHeadAttention(2, 2, name="heads")(inputs, inputs)
    x = layers.BatchNormalization(name="norm", moving_mean_initializer="random_normal")(x)
    inner = keras.Sequential([layers.Dense(5, name="dense"), layers.Dropout(0.5)], name="inner")
    x = layers.Bidirectional(layers.LSTM(2), name="both")(inner(x))
    if more:
        x = layers.Dense(4, name="more")(x)
    return tfgpu.Model(inputs, layers.Dense(classes, name=last)(x))


def values(model, name):
    return model.get_layer(name).get_weights()


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5", "run directory"])
def test_every_layer_is_taken_from_the_same_model(kind, tmp_path):
    source, model = network(seed=1), network(seed=2)
    path = tmp_path / ("model.keras" if kind == "run directory" else kind)
    (source.save_weights if kind.endswith(".h5") else source.save)(path)
    taken = take_weights(model, str(tmp_path if kind == "run directory" else path))
    assert_equal(model.get_weights(), source.get_weights())
    assert not taken.differing and not taken.absent and not taken.superfluous
    assert "inner/dense" in taken.taken and "heads/query_dense" in taken.taken


def test_what_is_not_taken_is_named_and_stays(tmp_path):
    source, model = network(seed=1, more=True), network(seed=2, classes=7)
    before = values(model, "logits")
    source.save_weights(tmp_path / "model.weights.h5")
    # With the layer "more" in between, the last one has another input too.
    taken = take_weights(model, str(tmp_path / "model.weights.h5"))
    assert taken.differing == ("logits (4x3 3 in the file, 4x7 7 here)",)
    assert taken.superfluous == ("more",) and taken.absent == ()
    assert_equal(values(model, "logits"), before)
    assert_equal(values(model, "norm"), values(source, "norm"))
    line = taken.described("FILE")
    assert line.startswith("8 of 9 layers from FILE; of another shape: logits (4x3 3 in")
    assert line.endswith("in the file alone: more")


def test_a_layer_of_another_name_is_not_taken(tmp_path):
    source, model = network(seed=1, last="old"), network(seed=2, last="new")
    before = values(model, "new")
    source.save(tmp_path / "model.keras")
    taken = take_weights(model, str(tmp_path / "model.keras"))
    assert taken.absent == ("new",) and taken.superfluous == ("old",)
    assert_equal(values(model, "new"), before)


def test_the_order_of_the_layers_does_not_matter(tmp_path):
    def two(first, second):
        x = inputs = keras.Input((4,))
        for name in (first, second):
            x = keras.layers.Dense(4, name=name)(x)
        return tfgpu.Model(inputs, x)

    source, model = two("a", "b"), two("b", "a")
    source.save_weights(tmp_path / "model.weights.h5")
    take_weights(model, str(tmp_path / "model.weights.h5"))
    assert_equal(values(model, "a"), values(source, "a"))


def test_names_that_keras_counts_mean_the_same_in_each_model(tmp_path):
    def unnamed():
        layers = [keras.layers.Dense(4) for _ in range(12)]
        return tfgpu.Sequential([keras.Input((4,)), *layers])

    source, model = unnamed(), unnamed()
    assert not {layer.name for layer in source.layers} & {layer.name for layer in model.layers}
    source.save(tmp_path / "model.keras")
    taken = take_weights(model, str(tmp_path / "model.keras"))
    assert taken.taken[:2] == ("dense", "dense_1") and len(taken.taken) == 12
    assert_equal(model.get_weights(), source.get_weights())


def test_a_file_of_keras_2(tmp_path):
    model = tfgpu.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(2, 3, name="conv1_conv"),
            keras.layers.BatchNormalization(name="conv1_bn"),
        ]
    )
    random = np.random.default_rng(0)
    kept = {
        "conv1_conv": [("kernel:0", (3, 3, 3, 2)), ("bias:0", (2,))],
        "conv1_bn": [(f"{name}:0", (2,)) for name in ("gamma", "beta", "mean", "variance")],
        "pool": [],
    }
    arrays = {name: [random.random(shape) for _, shape in kept[name]] for name in kept}
    with h5py.File(tmp_path / "notop.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in kept]
        for name, weights in kept.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight, _ in weights]
            for (weight, _), array in zip(weights, arrays[name], strict=True):
                group[f"{name}/{weight}"] = array
    taken = take_weights(model, str(tmp_path / "notop.h5"))
    assert set(taken.taken) == {"conv1_conv", "conv1_bn"} and not taken.superfluous
    for name in taken.taken:
        assert_equal(values(model, name), [a.astype(np.float32) for a in arrays[name]])


def test_replicas_get_the_same_weights(tmp_path, mirrored2):
    source = network(seed=1)
    source.save(tmp_path / "model.keras")
    with mirrored2.scope():
        model = network(seed=2)
        take_weights(model, str(tmp_path / "model.keras"))
    for variable in model.variables:
        first, second = mirrored2.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert_equal(model.get_weights(), source.get_weights())


def test_random_numbers_stay_the_runs_own(tmp_path):
    source, model = network(seed=1), network(seed=2)

    def state(model):
        return model.get_layer("inner").layers[1].seed_generator.state.numpy()

    before = state(model)
    assert (before != state(source)).any()
    source.save(tmp_path / "model.keras")
    take_weights(model, str(tmp_path / "model.keras"))
    np.testing.assert_array_equal(state(model), before)


def cases(tmp_path):
    (tmp_path / "text.txt").write_text("no weights")
    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "broken.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme", "no model")
    with h5py.File(tmp_path / "elsewhere.weights.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "logits"
        group.create_dataset("0", (4, 3), "f4", external=[("secret.bin", 0, 48)])
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="else")]).save_weights(
        tmp_path / "else.weights.h5"
    )


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("absent.keras", RequestError, "there is no such file; name a run directory, or a .keras"),
        ("text.txt", RequestError, "neither a run directory nor a .keras, .weights.h5 or .h5"),
        ("run", RequestError, "holds no model.keras: the run is not finished"),
        ("empty", RequestError, "holds no model.keras: it is no run"),
        ("broken.keras", ModelFileError, "cannot be read"),
        ("broken.weights.h5", ModelFileError, "cannot be read"),
        ("other.keras", ModelFileError, "cannot be read: .*model.weights.h5"),
        ("elsewhere.weights.h5", ModelFileError, "lies in another file"),
        ("else.weights.h5", ModelFileError, "nothing for this model: .* in the file alone: else"),
    ],
)
def test_what_cannot_be_used_is_refused(name, error, said, tmp_path):
    cases(tmp_path)
    model = network()
    before = model.get_weights()
    with pytest.raises(error, match=f"--weights=.*{name}.*{said}"):
        take_weights(model, str(tmp_path / name))
    assert_equal(model.get_weights(), before)
