"""A finished run read back: what is refused, and that nothing a file says is executed."""

import importlib
import json
import os
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from finished_run import CLASSES, SHAPE, build_model, write_run

from tfgpu.artifacts.trained_run import TrainedRun, load_safely
from tfgpu.errors import ModelFileError, RequestError

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build_model().save(path)
    return path


def changed(model_file, path, **members):
    """A copy of a model file with other members; None leaves one out."""
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(path, "w") as new:
        kept = {name: old.read(name) for name in old.namelist()}
        for name, content in (kept | members).items():
            if content is not None:
                new.writestr(name, content)
    return path


def refused(path):
    with pytest.raises(ModelFileError) as refusal:
        load_safely(path)
    message = str(refusal.value)
    assert str(path) in message and "\n" not in message
    return message


def test_a_run_says_its_classes_and_its_model_loads(tmp_path):
    model = build_model()
    run = TrainedRun.open(write_run(tmp_path / "run", model))
    assert (run.class_names, run.image_shape) == (CLASSES, SHAPE)
    images = np.random.RandomState(0).randint(0, 256, (5, *SHAPE)).astype("float32")
    loaded = run.load_model()
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))


def test_a_directory_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="no such directory"):
        TrainedRun.open(tmp_path / "none")


def test_a_directory_without_a_run_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match=r"holds no run \(no config.json\)"):
        TrainedRun.open(tmp_path)


def test_a_run_without_a_model_says_how_to_finish_it(tmp_path):
    with pytest.raises(ModelFileError, match="holds no model.keras.*tfgpu train --experiment="):
        TrainedRun.open(write_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("kept", "said"),
    [(True, "/run` writes it from the last checkpoint"), (False, "run again: .*/run-again`")],
)
def test_a_finished_run_whose_model_was_removed_says_what_helps(tmp_path, kept, said):
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(json.dumps({"status": "finished"}))
    (run / "checkpoints" / "step-00000007").mkdir(parents=True) if kept else None
    with pytest.raises(ModelFileError, match=f"removed from a finished run.*{said}"):
        TrainedRun.open(run)


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", "\udcff"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, model_file, name, content):
    place = write_run(tmp_path / "run")
    (place / "model.keras").write_bytes(model_file.read_bytes())
    (place / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelFileError, match=name):
        TrainedRun.open(place)


def test_a_model_of_another_number_of_classes_is_refused(tmp_path):
    run = TrainedRun.open(write_run(tmp_path / "run", build_model(classes=5)))
    with pytest.raises(ModelFileError, match=r"\(None, 5\).*3 classes"):
        run.load_model()


def test_a_model_for_other_images_is_refused(tmp_path):
    run = TrainedRun.open(write_run(tmp_path / "run", build_model(shape=(9, 9, 3))))
    with pytest.raises(ModelFileError, match=r"\(9, 9, 3\).*trained on \(8, 8, 3\)"):
        run.load_model()


def test_the_module_of_the_models_builder_is_not_needed(tmp_path):
    place = write_run(tmp_path / "run", build_model(), model="a_module_nobody_has:build")
    TrainedRun.open(place).load_model()
    assert "a_module_nobody_has" not in sys.modules


OWN_LAYER = """
import keras


@keras.saving.register_keras_serializable(package="trained_run_test")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def build(*, image_shape, num_classes):
    pass
"""


def test_a_model_with_layers_of_ones_own_needs_the_module_that_the_user_names(
    tmp_path, monkeypatch
):
    (tmp_path / "own_layers_of_a_test.py").write_text(OWN_LAYER)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    own_layers_of_a_test = importlib.import_module("own_layers_of_a_test")
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, own_layers_of_a_test.Doubled()(outputs))
    run = TrainedRun.open(write_run(tmp_path / "run", model, model="own_layers_of_a_test:build"))
    # As in a process that has not imported it.
    monkeypatch.delitem(keras.saving.get_custom_objects(), "trained_run_test>Doubled")
    del sys.modules["own_layers_of_a_test"]
    with pytest.raises(ModelFileError, match="--model=package.module:function"):
        run.load_model()
    assert "own_layers_of_a_test" not in sys.modules
    assert run.load_model(builder="own_layers_of_a_test:build").layers[-1].name == "doubled"


# ---- files that bring code ---------------------------------------------------------------


def test_a_lambda_is_refused_and_not_run(tmp_path):
    trace = str(tmp_path / "trace")
    inputs = keras.Input((2,))
    outputs = keras.layers.Lambda(lambda x: (open(trace, "w").close(), x)[1])(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    os.unlink(trace)  # Building ran it once.
    assert "Lambda" in refused(tmp_path / "model.keras")
    assert not os.path.exists(trace)


def test_a_lambda_of_a_function_of_keras_is_refused_too(tmp_path):
    inputs = keras.Input((2,))
    outputs = keras.layers.Lambda(keras.activations.relu)(inputs)
    inside = keras.Model(inputs, outputs)
    inputs = keras.Input((2,))
    keras.Model(inputs, inside(inputs)).save(tmp_path / "model.keras")
    assert "Lambda" in refused(tmp_path / "model.keras")


class Exploit:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("member", ["assets/extra", "assets/vocabulary.pkl"])
def test_a_pickle_among_the_assets_is_refused_and_not_run(tmp_path, model_file, member):
    code = pickle.dumps(Exploit(tmp_path / "trace"))
    path = changed(model_file, tmp_path / "model.keras", **{member: code})
    assert "pickle" in refused(path)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_in_the_place_of_the_weights_is_refused(tmp_path, model_file):
    code = pickle.dumps(Exploit(tmp_path / "trace"))
    path = changed(model_file, tmp_path / "model.keras", **{"model.weights.h5": code})
    assert "no HDF5 file" in refused(path)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "model.keras").write_bytes(pickle.dumps(Exploit(tmp_path / "trace")))
    assert "no Keras model" in refused(tmp_path / "model.keras")
    assert not (tmp_path / "trace").exists()


def test_a_member_that_no_model_has_is_refused(tmp_path, model_file):
    assert "'setup.py'" in refused(
        changed(model_file, tmp_path / "model.keras", **{"setup.py": "print()"})
    )


@pytest.mark.parametrize(
    ("module", "name"), [("antigravity", "geohash"), ("os", "system"), ("keras.utils", "get_file")]
)
def test_what_a_file_names_is_not_looked_up_outside_keras_classes(
    tmp_path, model_file, module, name
):
    config = json.loads(zipfile.ZipFile(model_file).read("config.json"))
    config["config"]["layers"][1] |= {"module": module, "class_name": name}
    path = changed(model_file, tmp_path / "model.keras", **{"config.json": json.dumps(config)})
    refused(path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
def test_an_archive_without_a_part_names_the_part(tmp_path, model_file, missing):
    path = changed(model_file, tmp_path / "model.keras", **{missing: None})
    assert missing in refused(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path, model_file):
    content = model_file.read_bytes()
    (tmp_path / "model.keras").write_bytes(content[: len(content) // 2])
    assert "no Keras model" in refused(tmp_path / "model.keras")


# ---- without tfgpu ------------------------------------------------------------------------


def test_a_runs_model_loads_with_plain_keras_where_tfgpu_is_not(digits_run):
    program = (
        "import sys; sys.modules['tfgpu'] = None\n"
        "import keras\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "print(type(model).__module__, model.output_shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, digits_run / "model.keras"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [
        "keras.src.models.functional",
        "(None, 10)\n",
    ]
