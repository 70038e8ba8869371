"""Export of a finished run: every format by its own runtime, the gate, refusals."""

import importlib.util
import json
import zipfile

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from commands import command, refusal
from finished_run import CLASSES, build_model, write_images, write_run

import tfgpu
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.export import __main__ as export
from tfgpu.export import formats, gate, run
from tfgpu.export.settings import EXPORT_FORMATS
from tfgpu.tasks.parts import image_serving

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

FLOAT_FILES = {
    "keras": "model.keras",
    "saved_model": "saved_model/1",
    "onnx": "model.onnx",
    "litert": "model.tflite",
}
LABELS = "".join(f"{digit}\n" for digit in range(10))


@pytest.fixture(scope="module")
def out(digits_run, tmp_path_factory):
    """A folder with every format of a short run on digits."""
    out = tmp_path_factory.mktemp("export") / "out"
    assert command(export.main, f"--run_dir={digits_run}", f"--out={out}") == 0
    return out


@pytest.fixture(scope="module")
def report(out):
    """What export.json says of it."""
    return json.loads((out / "export.json").read_text())


@pytest.fixture(scope="module")
def expected(digits_run):
    """Images and labels of the test split, and the probabilities by way of NumPy."""
    images, labels = (
        TrainedRun.open(digits_run).load_data(dataset=None, data_dir=None).test.load_arrays()
    )
    logits = keras.models.load_model(digits_run / "model.keras", compile=False)(images).numpy()
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return images, labels, powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images and a run on them: what is quick to export."""
    place = tmp_path_factory.mktemp("small")
    images = write_images(place / "images", counts={"train": 10, "test": 7})
    write_run(place / "run", build_model(), dataset=f"folder:{images}")
    return place


def exported(place, out, *argv, code=0):
    """Runs the command on `place`; its entries of export.json by format."""
    assert command(export.main, f"--run_dir={place / 'run'}", f"--out={out}", *argv) == code
    return {each["format"]: each for each in json.loads((out / "export.json").read_text())["files"]}


def call(kind, path, images):
    """Runs a file as its user would, without any of tfgpu."""
    if kind == "keras":
        return keras.models.load_model(path)(images).numpy()
    if kind == "saved_model":
        loaded = tf.saved_model.load(path)
        return loaded.signatures["serving_default"](pixels=images)["probabilities"].numpy()
    if kind == "onnx":
        runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return runtime.run(["probabilities"], {"pixels": images})[0]
    return Interpreter(str(path)).get_signature_runner()(pixels=images)["probabilities"]


# ---- the files -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 360])
@pytest.mark.parametrize("kind", FLOAT_FILES)
def test_a_float_file_takes_raw_pixels_and_gives_the_models_probabilities(
    out, expected, kind, count
):
    images, _, probabilities = expected
    assert images.dtype == np.uint8 and len(images) == 360
    found = call(kind, out / FLOAT_FILES[kind], images[:count])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities[:count], rtol=0, atol=1e-4)


def test_the_int8_file_is_as_accurate_as_the_model(out, expected):
    images, labels, probabilities = expected
    found = call("litert_int8", out / "model_int8.tflite", images)
    assert found.dtype == np.float32
    right = (found.argmax(axis=-1) == labels).mean()
    assert right == pytest.approx((probabilities.argmax(axis=-1) == labels).mean(), abs=0.01)


def test_int8_covers_the_convolutions(report):
    files = {each["format"]: each for each in report["files"]}
    assert files["litert"]["operators"]["CONV_2D float32"] == 2, "else the reading proves nothing"
    operators = files["litert_int8"]["operators"]
    assert operators["CONV_2D int8"] == 2
    assert operators["FULLY_CONNECTED int8"] == 3
    assert not [name for name in operators if name.startswith("CONV_2D ") and "float" in name]
    assert files["litert_int8"]["weights_bytes"] <= 0.3 * files["litert"]["weights_bytes"]


def test_the_float16_file_takes_half_the_bytes_and_computes_nearly_the_same(report):
    files = {each["format"]: each for each in report["files"]}
    half, full = files["litert_float16"], files["litert"]
    assert 0.45 < half["weights_bytes"] / full["weights_bytes"] < 0.55
    assert full["max_difference"] < half["max_difference"] < 1e-2


def test_the_keras_file_names_no_class_of_tfgpu(out):
    with zipfile.ZipFile(out / "model.keras") as archive:
        assert b"tfgpu" not in archive.read("config.json")


def test_the_saved_model_is_what_tensorflow_serving_expects(out):
    assert [each.name for each in (out / "saved_model").iterdir()] == ["1"]
    signature = tf.saved_model.load(out / "saved_model" / "1").signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    assert inputs["pixels"].dtype == tf.uint8
    assert inputs["pixels"].shape.as_list()[0] is None
    assert signature.structured_outputs["probabilities"].shape.as_list() == [None, 10]


def test_labels_and_preprocessing_travel_with_the_files(out, report):
    stated = report["preprocessing"]
    assert stated["dtype"] == "uint8" and "bilinear" in stated["resize"]
    assert (out / "labels.txt").read_text() == LABELS
    extra = out / "saved_model" / "1" / "assets.extra"
    assert (extra / "labels.txt").read_text() == LABELS
    assert json.loads((extra / "preprocessing.json").read_text()) == stated
    for name in ("model.tflite", "model_int8.tflite"):
        with zipfile.ZipFile(out / name) as archive:
            assert archive.read("labels.txt").decode() == LABELS
            assert json.loads(archive.read("preprocessing.json")) == stated
    found = {each.key: each.value for each in onnx.load(out / "model.onnx").metadata_props}
    assert json.loads(found["labels"]) == LABELS.split()
    assert json.loads(found["preprocessing"]) == stated


# ---- the gate ------------------------------------------------------------------------------


def test_the_report_measures_every_file_over_the_whole_test_split(digits_run, report):
    tested = json.loads((digits_run / "result.json").read_text())["test_accuracy"]
    assert report["examples"] == 360
    assert report["reference"]["accuracy"] == pytest.approx(tested, abs=1e-6)
    assert [each["format"] for each in report["files"]] == list(EXPORT_FORMATS)
    for each in report["files"]:
        assert each["accepted"] and each["verdict"] == "accepted"
        assert each["accuracy"] == pytest.approx(tested, abs=0.01)
        assert 0.98 <= each["agreement"] <= 1
        assert each["bytes"] > 60_000, "of 62,006 weights"
        assert 0 < each["latency_ms_p50"] <= each["latency_ms_p99"]
        assert each["images_per_second"] > 0


def lying(write):
    """A writer that writes another model than it was given."""

    def write_other(source, path):
        other = image_serving.inference_model(
            build_model(seed=1), image_shape=source.model.input_shape[1:]
        )
        write(formats.Source(other, source.class_names, source.preprocessing), path)

    return write_other


def test_a_file_that_differs_is_kept_under_another_name_with_exit_code_1(
    place, tmp_path, monkeypatch, capsys
):
    argv = (tmp_path, "--formats=keras,saved_model")
    exported(place, *argv)
    for kind in ("keras", "saved_model"):
        name, write = formats.FILES[kind]
        monkeypatch.setitem(formats.FILES, kind, (name, lying(write)))
    found = exported(place, *argv, code=1)
    assert not any(each["accepted"] for each in found.values())
    assert "off, more than 0.0001" in found["keras"]["verdict"]
    assert "rejected" in capsys.readouterr().out
    assert (tmp_path / "model.rejected.keras").is_file()
    assert not (tmp_path / "model.keras").exists(), "it was of another export"
    assert (tmp_path / "saved_model.rejected" / "1" / "saved_model.pb").is_file()
    assert [each.name for each in (tmp_path / "saved_model").iterdir()] == ["1"]
    monkeypatch.undo()
    exported(place, *argv)
    assert (tmp_path / "model.keras").is_file()
    assert not list(tmp_path.glob("*.rejected*"))
    assert sorted(each.name for each in (tmp_path / "saved_model").iterdir()) == ["1", "2"]


def test_the_limit_of_float_files_is_a_flag(place, tmp_path):
    found = exported(place, tmp_path, "--formats=keras,onnx", "--max_difference=1e-12", code=1)
    assert found["keras"]["max_difference"] != found["onnx"]["max_difference"]
    assert "more than 1e-12" in found["onnx"]["verdict"]
    assert (tmp_path / "model.rejected.onnx").is_file()


def test_int8_with_wrong_ranges_is_rejected_for_its_accuracy(digits_run, tmp_path, monkeypatch):
    shape = TrainedRun.open(digits_run).image_shape
    monkeypatch.setattr(run, "_calibration", lambda *_, **__: np.zeros((4, *shape), np.uint8))
    found = exported(digits_run.parent, tmp_path, "--formats=litert_int8", code=1)
    assert "away from" in found["litert_int8"]["verdict"]
    assert (tmp_path / "model_int8.rejected.tflite").is_file()
    assert not (tmp_path / "model_int8.tflite").exists()


def test_a_format_that_cannot_be_made_does_not_stop_the_others(place, tmp_path, monkeypatch):
    def fail(source, path):
        raise ValueError("no such operator\nand a long story")

    monkeypatch.setitem(formats.FILES, "saved_model", ("saved_model", fail))
    found = exported(place, tmp_path, "--formats=keras,saved_model", code=1)
    assert found["keras"]["accepted"]
    assert found["saved_model"]["path"] is None
    assert found["saved_model"]["verdict"] == "rejected: cannot be made: no such operator"


def compared(difference, right):
    return gate.Comparison(examples=100, max_difference=difference, agreeing=100, right=right)


@pytest.mark.parametrize(
    ("kind", "difference", "right", "accepted"),
    [
        ("onnx", 1e-4, 90, True),
        ("onnx", 1.01e-4, 90, False),
        ("onnx", float("nan"), 90, False),
        ("litert_float16", 0.5, 89, True),
        ("litert_float16", 0.5, 88, False),
        ("litert_int8", 0.5, 89, True),
        ("litert_int8", 0.5, 88, False),
        ("litert_int8", 0.5, 92, False),
        ("litert_int8", float("nan"), 90, False),
    ],
)
def test_what_is_beyond_a_limit(kind, difference, right, accepted):
    said = gate.verdict(
        kind,
        compared(difference, right),
        compared(0.0, 90),
        max_difference=1e-4,
        max_accuracy_difference=0.01,
    )
    assert (said == "") is accepted


def test_a_probability_that_is_not_a_number_stays_in_the_comparison():
    comparison = gate.Comparison()
    good = np.array([[0.5, 0.5]], np.float32)
    comparison.add(np.full((1, 2), np.nan, np.float32), good, np.array([0]))
    comparison.add(good, good, np.array([0]))
    assert np.isnan(comparison.max_difference)


# ---- mixed precision -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision", [pytest.param("mixed_float16", marks=pytest.mark.slow), "mixed_bfloat16"]
)
def test_a_model_of_mixed_precision_is_exported_under_float32(place, tmp_path, precision):
    keras.config.set_dtype_policy(precision)
    model = build_model()
    keras.config.set_dtype_policy("float32")
    assert model.layers[2].compute_dtype == precision.removeprefix("mixed_")
    write_run(tmp_path / "run", model, dataset=f"folder:{place / 'images'}", precision=precision)
    out = tmp_path / "out"
    exported(tmp_path, out, "--formats=keras,onnx,litert")
    # Another model of the same weights, which never was in mixed precision.
    plain = build_model()
    plain.set_weights(model.get_weights())
    images = np.random.RandomState(0).randint(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    powers = np.exp(plain(images).numpy().astype(np.float64))
    probabilities = powers / powers.sum(axis=-1, keepdims=True)
    for kind in ("keras", "onnx", "litert"):
        found = call(kind, out / FLOAT_FILES[kind], images)
        np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-4)
    report = json.loads((out / "export.json").read_text())
    assert report["precision"] == precision
    assert report["run_model"]["max_difference"] > 0, "the run's own model is compared too"


# ---- what is refused ------------------------------------------------------------------------


def refused(capsys, place, *argv):
    return refusal(capsys, export.main, f"--run_dir={place / 'run'}", *argv)


@pytest.mark.slow
def test_a_model_that_augments_is_exported_for_inference(place, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "SECONDS", 0.05)  # How fast they are does not matter here.
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for layer in (
        keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.2)]),
        layers.RandomContrast(0.5),
        layers.RandomErasing(),
        layers.GaussianNoise(0.5),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.AlphaDropout(0.5),
        layers.Dense(3),
    ):
        x = layer(x)
    model = tfgpu.Model(inputs, x)
    run = write_run(tmp_path / "run", model, dataset=f"folder:{place / 'images'}")
    out = tmp_path / "out"
    assert command(export.main, f"--run_dir={run}", f"--out={out}") == 0
    images = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3), np.uint8)
    expected = tf.nn.softmax(model(images, training=False)).numpy()
    for kind, name in FLOAT_FILES.items():  # Nobody says `training` to them.
        found = call(kind, out / name, images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_exact_gelu_is_in_an_onnx_file(place, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "SECONDS", 0.05)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 64, offset=-2.0)(inputs))
    model = tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, activation="gelu")(x)))
    run = write_run(tmp_path / "run", model, dataset=f"folder:{place / 'images'}")
    out = tmp_path / "out"
    assert command(export.main, f"--run_dir={run}", f"--out={out}", "--formats=onnx") == 0
    images = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3), np.uint8)
    expected = tf.nn.softmax(model(images, training=False)).numpy()
    found = call("onnx", out / FLOAT_FILES["onnx"], images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_run_without_a_model_is_refused(tmp_path, capsys):
    write_run(tmp_path / "run")
    code, said = refused(capsys, tmp_path)
    assert code == 4
    assert "model.keras" in said


def test_a_data_set_with_other_classes_is_refused(place, tmp_path, capsys):
    images = write_images(
        tmp_path / "a", counts={"train": 2, "test": 2}, names=("dark", "greyish", "light")
    )
    code, said = refused(
        capsys, place, f"--dataset=folder:{images}", f"--out={tmp_path}", "--formats=keras"
    )
    assert code == 2
    assert "other classes" in said and repr(CLASSES[1]) in said


def test_an_unknown_format_is_refused(place, capsys):
    code, said = refused(capsys, place, "--formats=keras,onx")
    assert code == 2
    assert "'onx' is not a format" in said and "did you mean 'onnx'" in said


@pytest.mark.parametrize(
    ("kind", "module"), [("onnx", "tf2onnx"), ("litert_int8", "ai_edge_litert")]
)
def test_a_missing_package_names_the_extra(place, capsys, monkeypatch, kind, module):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
    )
    code, said = refused(capsys, place, f"--formats=keras,{kind}")
    assert code == 2
    assert module in said and "pip install 'tfgpu[export]'" in said


def test_a_place_that_cannot_be_written_is_refused(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, said = refused(capsys, place, f"--out={tmp_path / 'file' / 'out'}", "--formats=keras")
    assert code == 2
    assert "--out=" in said and "cannot be written" in said


@pytest.mark.parametrize("more", [(), ("--dry_run",)], ids=["export", "dry run"])
def test_the_directory_of_a_run_is_no_place_for_an_export(place, capsys, more):
    run = place / "run"
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    argv = [f"--run_dir={run}", f"--out={run / '..' / 'run'}", "--formats=keras", *more]
    code, said = refusal(capsys, export.main, *argv)
    assert code == 2 and "is the directory of a run" in said
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_dry_run_names_the_files_and_writes_none(place, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"earlier")
    argv = [f"--run_dir={place / 'run'}", f"--out={out}", "--formats=onnx,saved_model"]
    assert command(export.main, *argv, "--dry_run") == 0
    said = capsys.readouterr().out.splitlines()
    listed = said[said.index(f"would write to {out}:") + 1 :]
    assert listed[:4] == [
        "  saved_model/N",
        "  model.onnx  (replaces the one there)",
        "  labels.txt",
        "  export.json",
    ]
    assert any(line.split() == ["--formats=saved_model,onnx", "given"] for line in said)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    assert (out / "model.onnx").read_bytes() == b"earlier"
