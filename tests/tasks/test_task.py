"""A task of one's own through the commands, and what is refused of tasks and their settings."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from commands import command, refusal
from finished_run import write_images
from PIL import Image
from task_runs import read_json, weights

from tfgpu import tasks
from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.data.tfds_source import feature_of
from tfgpu.errors import RequestError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.options import check_objective, read_options, read_roles
from tfgpu.train import __main__ as train
from tfgpu.train.session import load_data
from tfgpu.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

# Words of varying number, as numbers of a vocabulary with a mask, and how many are in it.
OWN = """
import hashlib
import keras
import numpy as np
import tensorflow as tf
import tfgpu
from tfgpu.data.augment import Transformation
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.tasks.task import DataSpec, Reading, Task

LENGTH = 6
SEEN = []  # The words that were there to be fitted.


def open_source(name):
    random = np.random.RandomState(0)
    words = np.array([" ".join(random.choice(list("abcdefgh"), random.randint(1, LENGTH + 1)))
                      for _ in range(90)])
    words[-1] = "only in the test"
    counts = np.array([len(each.split()) for each in words], np.float32)[:, None]
    splits = {"train": slice(0, 70), "test": slice(70, 90)}

    def split(name, label=None):
        if name in splits:
            some = splits[name]
            return Records.from_arrays({"words": words[some], "count": counts[some]})

    features = {"words": Feature(kind="text", dtype="string", described="text"),
                "count": Feature(kind="numbers", shape=(1,), dtype="float32", described="counts")}
    return Source(name=name, fingerprint=hashlib.sha256(words.tobytes()).hexdigest(), split=split,
                  schema=Schema(requested=name, features=features, supervised=("words", "count")))


def read(request):
    fitted = request.fitted
    if fitted is None:
        SEEN[:] = [words.decode() for words in request.train.load(("words",))["words"]]
        fitted = {"vocabulary": sorted({w for words in SEEN for w in words.split()})}
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(
        fitted["vocabulary"], list(range(1, len(fitted["vocabulary"]) + 1)),
        value_dtype=tf.int64), 0)

    def decode(found):
        tokens = table.lookup(tf.strings.split(found["words"]))[:LENGTH]
        padded = tf.pad(tokens, [[0, LENGTH - tf.size(tokens)]])
        mask = tf.range(LENGTH) < tf.size(tokens)
        return {"tokens": tf.ensure_shape(tf.cast(padded, tf.int32), [LENGTH]),
                "mask": tf.ensure_shape(tf.cast(mask, tf.float32), [LENGTH])}, found["count"]

    x = {"tokens": tf.TensorSpec([LENGTH], tf.int32), "mask": tf.TensorSpec([LENGTH], tf.float32)}
    spec = DataSpec(x=x, y=tf.TensorSpec([1], tf.float32), fitted=fitted)
    names = ("words", "count")
    return Reading(spec=spec, examples=lambda split, some: some.examples(names, decode),
                   notes=("a note",))


def build(*, spec, width=1.0):
    inputs = {name: keras.Input(part.shape, dtype=part.dtype.name, name=name)
              for name, part in spec.x.items()}
    e = keras.layers.Embedding(len(spec.fitted["vocabulary"]) + 1, 4)(inputs["tokens"])
    e = keras.layers.Dot((1, 1))([inputs["mask"], e])
    return tfgpu.Model(inputs, keras.layers.Dense(1, dtype="float32")(e))


def drop(x, y, draws):
    kept = tf.cast(draws > 0.1, tf.float32)
    return x | {"mask": x["mask"] * kept}, y


TASK = Task(
    name="counting",
    open=open_source,
    read=read,
    models={"bag": build},
    arguments=lambda spec: {"spec": spec},
    outputs=lambda spec: (1,),
    loss=lambda spec, settings: keras.losses.MeanSquaredError(),
    metrics=lambda spec: [keras.metrics.MeanAbsoluteError(name="mae")],
    objective="mae",
    augment={"drop": Transformation("drop", LENGTH, drop)},
    options={"length": LENGTH, "share": 0.5},
)


class OfAll(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 2)


replace = __import__("dataclasses").replace
BAD = replace(TASK, loss=lambda spec, settings: OfAll())
TYPO = replace(TASK, recipe=lambda spec, count: {"epoch": 8})
EMPTY = replace(TASK, models={})
"""

SETTINGS = ["--dataset=words", "--epochs=2", "--batch_size=16", "--progress=none", "--augment=drop"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the task's module in it, which is the current one."""
    place = tmp_path_factory.mktemp("own")
    (place / "own_task.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [*sys.path, str(place)])
        yield place


def trained(place, name, *flags):
    argv = [*SETTINGS, "--task=own_task:TASK", f"--run_dir={place / name}", *flags]
    assert command(train.main, *argv) == 0
    return place / name


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0")


# ---- a task of one's own -------------------------------------------------------------------


def test_a_task_of_ones_own_trains_on_dicts_with_a_mask(run):
    result = read_json(run / "result.json")
    assert result["status"] == "finished" and result["model"] == "bag"
    assert all(np.isfinite(result[name]) for name in ("mae", "val_mae", "test_mae"))
    assert result["accuracy"] is None and result["test_accuracy"] is None
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val_mae"] for line in lines][-1] == result["val_mae"]
    log = (run / "log.txt").read_text()
    assert "a note\n" in log and f"test mae {result['test_mae']:.4f}, loss" in log


def test_what_is_fitted_saw_neither_validation_nor_test(place, run):
    own_task = importlib.import_module("own_task")

    fitted = read_json(run / "fitted.json")["vocabulary"]
    assert len(own_task.SEEN) == 63 and fitted == list("abcdefgh")


def test_both_inputs_give_the_same_bits(place, run):
    other = trained(place, "streaming", "--devices=CPU:0", "--input=streaming")
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_replicas_are_one(place, run):
    other = trained(place, "two", "--devices=CPU:0,CPU:1")
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_of_other_fitted_values_is_not_continued(place, capsys):
    flags = ("--devices=CPU:0", "--tensorboard=none")
    path = trained(place, "again", *flags, "--lr_schedule=constant", "--warmup_epochs=0")
    module = place / "own_task.py"
    changed = OWN.replace("sorted({w", "sorted({w.upper()")
    try:
        module.write_text(changed)
        del sys.modules["own_task"]
        argv = [*SETTINGS, *flags, "--task=own_task:TASK", f"--run_dir={path}"]
        argv += ["--lr_schedule=constant", "--warmup_epochs=0", "--epochs=3"]
        capsys.readouterr()
        code = command(train.main, *argv)
        said = capsys.readouterr().err
    finally:
        module.write_text(OWN)
        del sys.modules["own_task"]
    assert code in (2, 4) and "data.fitted" in said


def test_evaluate_measures_it_with_its_own_metrics(run, tmp_path):
    argv = (f"--run_dir={run}", "--task=own_task:TASK", f"--out={tmp_path}")
    assert command(evaluate.main, *argv, "--devices=CPU:0,CPU:1", "--batch_size=8") == 0
    found, result = read_json(tmp_path / "evaluation.json"), read_json(run / "result.json")
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert found["mae"] == pytest.approx(result["test_mae"], rel=1e-5)


def test_splits_together_are_measured_as_one(run, tmp_path):
    found = {}
    for split in ("train", "validation", "test", "all"):
        argv = (f"--run_dir={run}", "--task=own_task:TASK", f"--out={tmp_path / split}")
        assert command(evaluate.main, *argv, f"--split={split}", "--devices=CPU:0") == 0
        found[split] = read_json(tmp_path / split / "evaluation.json")
    whole = found.pop("all")
    assert whole["examples"] == sum(each["examples"] for each in found.values()) == 90
    mean = sum(each["mae"] * each["examples"] for each in found.values()) / 90
    assert whole["mae"] == pytest.approx(mean, rel=1e-5)


def test_a_task_that_a_file_names_is_not_imported(run, tmp_path, capsys):
    code, said = refusal(capsys, evaluate.main, f"--run_dir={run}", f"--out={tmp_path}")
    assert code == 2 and "give --task=own_task:TASK" in said


def test_a_task_that_does_not_say_how_to_predict_is_refused(run, capsys):
    argv = (f"--run_dir={run}", "--task=own_task:TASK", "a.txt")
    code, said = refusal(capsys, predict.main, *argv)
    assert code == 2 and "give its Task a `predict`" in said


def test_a_loss_that_is_not_a_value_for_each_example_is_refused(place, capsys):
    argv = (*SETTINGS, "--task=own_task:BAD", f"--run_dir={place / 'bad'}", "--devices=CPU:0")
    capsys.readouterr()
    assert command(train.main, *argv) == 2
    assert "it must give one for each" in capsys.readouterr().err
    assert not (place / "bad").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task=own_task:NONE"], "own_task has no object 'NONE'"),
        (["--task=own_task:build"], "is a function; name a Task"),
        (["--task=nowhere:TASK"], "there is no module 'nowhere'"),
        (["--task=own_task:TYPO"], "counting has 'epoch' (did you mean 'epochs'?); it may have"),
        (["--task=own_task:EMPTY"], "the task counting has no models"),
        (["--augment=spin"], "'spin' is not an augmentation of the task counting; it has drop"),
        (
            ["--class_weight=balanced"],
            "--class_weight=balanced has no meaning for the task counting",
        ),
        (["--label_smoothing=0.1"], "has no meaning for the task counting"),
        (["--task_options=lenght=3"], "no option 'lenght' (did you mean 'length'?)"),
        (["--task_options=length=many"], "length=many: must be a whole number"),
        (["--task_options=share=nan"], "share=nan: must be a number"),
        (["--task_options=share=inf"], "share=inf: must be a number"),
        (["--features=x=wrds"], "has no feature 'wrds' (did you mean 'words'?)"),
        (["--model=bog"], "--model=bog is none of bag of --task=counting"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(place, capsys, flags, said):
    given = ["--task=own_task:TASK", *SETTINGS, f"--run_dir={place / 'none'}", *flags]
    capsys.readouterr()
    assert command(train.main, *given) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("tfgpu: ") and said in shown and shown.count("\n") == 1
    assert not (place / "none").exists()


def test_an_objective_that_is_no_metric_is_refused_before_a_search():
    task = SimpleNamespace(name="any", metrics=lambda spec: ["accuracy"], objective="acuracy")
    with pytest.raises(RequestError, match="'acuracy', which is none of its metrics, accuracy, no"):
        check_objective(task, None)
    for objective in ("accuracy", "loss"):
        check_objective(SimpleNamespace(**vars(task) | {"objective": objective}), None)


def test_a_run_of_another_task_is_refused_by_name():
    run = TrainedRun(Path("runs/a"), {}, {"task": "text"}, {})
    assert run.task().name == run.task("text").name == "text"
    with pytest.raises(RequestError, match="--task=rating:TASK: the run in runs/a was trained for"):
        run.task("rating:TASK")


def test_options_keep_the_types_of_their_defaults():
    defaults = {"split": "random", "length": 3, "share": 0.5, "lower": False}
    given = {"task_options": "split=time,length=7,share=0.25,lower=true", "tokens": "word"}
    assert read_options(given, defaults, task="any") == {
        **{"target": None, "tokens": "word"},
        **{"split": "time", "length": 7, "share": 0.25, "lower": True},
    }


# ---- recognising ---------------------------------------------------------------------------


def test_the_tasks_are_the_modules():
    assert set(tasks.names()) >= {"classification", "segmentation"}
    assert {"task", "loading", "options", "parts"}.isdisjoint(tasks.names())
    for name in tasks.names():
        assert loading.find_task(name).name == name


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        (tfds.features.Image(shape=(None, None, 3)), "image"),
        (tfds.features.LabeledImage(labels=3, shape=(4, 4, 1)), "mask"),
        (tfds.features.ClassLabel(num_classes=2), "class"),
        (tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)), "classes"),
        (tfds.features.Text(), "text"),
        (tfds.features.Scalar(np.float32), "number"),
        (tfds.features.Tensor(shape=(3,), dtype=np.float32), "numbers"),
        (tfds.features.Scalar(np.str_), "id"),
        (tfds.features.Audio(sample_rate=8000), "audio"),
        (
            tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "type": tfds.features.ClassLabel(names=["car", "tram"]),
                }
            ),
            "boxes",
        ),
    ],
)
def test_features_of_tfds_are_found_by_type(feature, kind):
    found = feature_of(feature)
    assert found.kind == kind
    if kind == "boxes":
        assert found.class_names == ("car", "tram")
    if kind == "audio":
        assert found.sample_rate == 8000


def test_several_tasks_that_fit_are_a_doubt(tmp_path):
    from tfgpu.data.records import Feature, Schema

    features = {
        "image": Feature(kind="image", shape=(8, 8, 3), dtype="uint8", described="Image"),
        "label": Feature(kind="class", class_names=("a", "b"), described="ClassLabel"),
        "mask": Feature(kind="mask", shape=(8, 8, 1), dtype="uint8", described="Mask"),
    }
    schema = Schema(requested="both", features=features)
    with pytest.raises(RequestError, match="--task=classification or --task=segmentation"):
        loading._recognised(schema, {})
    assert loading._recognised(schema, {"y": "mask"})[0].name == "segmentation"
    supervised = Schema(requested="both", features=features, supervised=("image", "label"))
    assert loading._recognised(supervised, {})[0].name == "classification"


# ---- classification ------------------------------------------------------------------------


def test_balanced_weights_are_the_inverse_frequencies(tmp_path):
    from tfgpu.data.inputs import training_batches
    from tfgpu.train import recipe

    write_images(tmp_path, counts={"train": 6, "test": 2})
    for extra in range(6, 12):  # Twice as many of one class.
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"train/dark/{extra}.png")
    config = TrainSettings(
        dataset=f"folder:{tmp_path}", class_weight="balanced", validation_fraction=0.0
    )
    data = load_data(config)
    resolved = recipe.resolve_for(config, data, replicas=1, on_gpu=False)
    weights = recipe.class_weights(resolved, data)
    np.testing.assert_allclose(weights.values, [24 / (3 * 12), 24 / (3 * 6), 24 / (3 * 6)])
    batches = training_batches(data.train, batch_size=8, seed=0, class_weights=weights)
    _, labels, given = batches.device_map(next(iter(batches)), ())
    np.testing.assert_allclose(given, np.array(weights.values)[labels], rtol=1e-6)
    assert batches.settings["class_weight"] == list(weights.values)


def test_images_that_are_in_two_splits_are_counted_and_said(tmp_path, capsys):
    images = write_images(tmp_path / "images", counts={"train": 6, "test": 3}, size=(16, 16))
    for i in range(2):
        content = (images / f"train/dark/{i:02d}.png").read_bytes()
        (images / f"test/light/copy{i}.png").write_bytes(content)
    for mode in ("resident", "streaming"):
        run = tmp_path / mode
        argv = (f"--dataset=folder:{images}", f"--run_dir={run}", f"--input={mode}", "--epochs=1")
        flags = ("--validation_fraction=0", "--progress=none", "--tensorboard=none")
        assert command(train.main, *argv, *flags, "--batch_size=8") == 0
        assert read_json(run / "result.json")["identical_inputs"] == {"test": 2}
        assert "2 of 11 test images are identical to training images" in capsys.readouterr().out


def test_the_tensors_of_a_dict_are_read_by_name():
    from tfgpu.data.examples import Examples

    x = {"a": np.arange(6, dtype=np.int32).reshape(3, 2), "b": np.ones((3, 4), np.float32)}
    examples = Examples.from_arrays(x, np.arange(3))
    found, y = examples.take(np.array([2, 0])).load_arrays()
    np.testing.assert_array_equal(found["a"], [[4, 5], [0, 1]])
    assert found["b"].shape == (2, 4) and y.tolist() == [2, 0]
    assert examples.nbytes == 3 * (8 + 16 + 8)
    assert tf.nest.flatten(examples.element_spec)[0].dtype == tf.int32


def test_a_target_is_y():
    assert read_roles(None, "label") == {"y": "label"}
    assert read_roles("x=text", "label") == {"x": "text", "y": "label"}
    assert read_roles("y=label", "label") == {"y": "label"}
    assert read_roles("x=text", None) == {"x": "text"} and read_roles(None) == {}
    with pytest.raises(RequestError, match="--target=a and --features=x=t,y=b name two features"):
        read_roles("x=t,y=b", "a")
