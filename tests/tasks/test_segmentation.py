"""Segmentation: loss, metrics and augmentation against NumPy, and a set through every command."""

import json
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command
from PIL import Image
from segmented import write
from task_runs import result_of, train_run, weights

from tfgpu.errors import DataError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models.segmentation_loss import VOID, DiceCrossentropy, class_weights
from tfgpu.models.unet import unet
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.parts.pixel_metrics import MeanDice, MeanIoU, PixelConfusion
from tfgpu.tasks.parts.serving import PROBABILITIES
from tfgpu.tasks.segmentation import AUGMENT, TASK, _dice, _shares

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
MASKS = RANDOM.choice([0, 1, 2, VOID], (4, 6, 5), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
LOGITS = RANDOM.normal(size=(4, 6, 5, 3)).astype(np.float32)


# ---- loss and metrics ----------------------------------------------------------------------


WEIGHTS = (0.5, 1.5, 3.0)


def expected_loss(mask, logits, weights=WEIGHTS):
    """Of one example, by the definitions."""
    chance = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    valid = mask != VOID
    own = mask[valid]
    entropy = -(np.log(chance[valid, own]) * np.array(weights)[own]).mean()
    dice = []
    for label in np.unique(own):
        p, g = chance[valid, label], (own == label).astype(float)
        dice.append(2 * (p * g).sum() / (p.sum() + g.sum()))
    return entropy + 1 - np.mean(dice)


def test_the_loss_is_one_value_an_example_without_void_pixels():
    masks = MASKS.copy()
    masks[3][masks[3] == 2] = 0  # A class that an example has not.
    found = DiceCrossentropy(3, WEIGHTS).call(tf.constant(masks, tf.float32), LOGITS).numpy()
    expected = [expected_loss(mask, logits) for mask, logits in zip(masks, LOGITS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_empty_mask_asks_for_nothing_but_the_background():
    empty, logits = tf.zeros([1, 6, 5]), tf.Variable(LOGITS[:1])
    with tf.GradientTape() as tape:
        loss = DiceCrossentropy(3).call(empty, logits)
    found = tape.gradient(loss, logits).numpy()
    assert (found[..., 0] < 0).all() and (found[..., 1:] > 0).all()
    sure = np.zeros((1, 6, 5, 3), np.float32) + [50.0, 0.0, 0.0]
    assert DiceCrossentropy(3).call(empty, sure).numpy() == pytest.approx(0, abs=1e-6)


def test_rare_classes_weigh_more_and_a_pixel_one_on_average():
    shares = (0.999, 0.001)
    weights = class_weights(shares)
    assert np.dot(weights, shares) == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.log(2.019) / np.log(1.021))
    assert class_weights((0.5, 0.5)) == pytest.approx([1, 1])


def test_shares_of_the_classes_are_those_of_the_training_masks(run, place):
    fitted = json.loads((run / "fitted.json").read_text())
    masks = [np.asarray(Image.open(path)) for path in (place / "set" / "masks").iterdir()]
    whole = np.mean([(mask == 2).mean() for mask in masks])
    assert sum(fitted["shares"]) == pytest.approx(1)
    assert fitted["shares"][2] == pytest.approx(whole, rel=0.2)  # A tenth is for validation.


@pytest.mark.parametrize(
    ("pixels", "expected"), [((0.1, 0.1), (0.5, 0.5)), ((0, 0), (0.5, 0.5)), ((3, 1), (0.75, 0.25))]
)
def test_shares_sum_to_one_however_little_of_the_masks_is_labelled(pixels, expected):
    counts = np.zeros(256)
    counts[:2] = pixels
    assert _shares(counts, [0, 1]) == pytest.approx(expected)


def test_a_run_of_before_there_were_shares_has_a_loss():
    spec = types.SimpleNamespace(num_classes=2, fitted={})
    assert TASK.loss(spec, None).class_weights is None


def test_a_mask_of_void_alone_has_a_finite_loss():
    nothing = tf.fill([1, 6, 5], float(VOID))
    assert np.isfinite(DiceCrossentropy(3).call(nothing, LOGITS[:1]).numpy()).all()


def test_the_loss_is_saved_and_read_back():
    loss = keras.losses.deserialize(keras.losses.serialize(DiceCrossentropy(3, WEIGHTS)))
    assert (loss.num_classes, loss.class_weights) == (3, list(WEIGHTS))


def confusion():
    counts = np.zeros((3, 3))
    valid = MASKS != VOID
    np.add.at(counts, (MASKS[valid], LOGITS.argmax(-1)[valid]), 1)
    return counts


def updated(metric):
    for some in (slice(0, 3), slice(3, 4)):
        metric.update_state(MASKS[some], LOGITS[some])
    return metric


def test_pixels_are_counted_over_batches():
    np.testing.assert_array_equal(updated(PixelConfusion(num_classes=3)).confusion(), confusion())


def test_mean_iou_is_that_of_keras():
    theirs = keras.metrics.MeanIoU(3, sparse_y_pred=False, ignore_class=VOID)
    theirs.update_state(MASKS.astype(np.int32), LOGITS)
    ours = float(updated(MeanIoU(num_classes=3)).result())
    assert ours == pytest.approx(float(theirs.result()), rel=1e-6)


def test_a_class_that_is_nowhere_does_not_count():
    with_one_more = np.concatenate([LOGITS, np.full((*LOGITS.shape[:3], 1), -9.0)], axis=-1)
    metric = MeanIoU(num_classes=4)
    metric.update_state(MASKS, with_one_more)
    assert float(metric.result()) == pytest.approx(float(updated(MeanIoU(num_classes=3)).result()))


@pytest.mark.parametrize("background", [False, True])
def test_dice_is_the_mean_over_classes_without_the_background(background):
    counts = confusion()
    each = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    found = float(updated(MeanDice(num_classes=3, background=background)).result())
    assert found == pytest.approx(each[int(background) :].mean())


def test_exported_files_are_judged_by_the_classes_of_a_mask():
    masks = np.zeros((3, 10, 10), np.uint8)
    masks[0, 0, :5] = 1
    masks[1, :, 5:] = VOID
    background = np.zeros((3, 10, 10, 2), np.float32) + [0.9, 0.1]
    scores = _dice({PROBABILITIES: background}, masks)
    assert scores == pytest.approx([(2 * 95 / 195 + 0) / 2, 1, 1])
    found = background.copy()
    found[0, 0, :5] = [0.1, 0.9]
    assert _dice({PROBABILITIES: found}, masks) == pytest.approx([1, 1, 1])


# ---- augmentation --------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENT)
def test_image_and_mask_move_together(name):
    # An image that shows its mask: where the two move alike, it still does.
    masks = np.zeros((16, 24, 24), np.uint8)
    for i in range(16):
        masks[i, i // 2 : i // 2 + 9, 5:14] = 1
    images = np.repeat(masks[..., None] * 200, 3, axis=-1).astype(np.uint8)
    draws = RANDOM.uniform(size=(16, AUGMENT[name].numbers)).astype(np.float32)
    moved, moved_masks = (
        part.numpy() for part in AUGMENT[name].function(tf.constant(images), masks, draws)
    )
    assert moved.shape == images.shape and moved_masks.shape == masks.shape
    assert (moved_masks != masks).any()
    # Resizing blends the pixels at an edge, so that a few lie between.
    assert ((moved[..., 0] > 100) == (moved_masks == 1)).mean() > 0.99


def test_resizing_by_nothing_changes_nothing():
    images = RANDOM.randint(0, 256, (3, 8, 7, 3)).astype(np.uint8)
    masks = RANDOM.randint(0, 3, (3, 8, 7)).astype(np.uint8)
    middle = tf.fill([3, 2], 0.5)
    same, same_masks = AUGMENT["resize"].function(tf.constant(images), tf.constant(masks), middle)
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(same_masks, masks)


def test_the_network_takes_images_of_any_size():
    model = unet(image_shape=(21, 34, 1), num_classes=4, width=0.5, depth=2)
    assert model(np.zeros((2, 21, 34, 1), np.float32)).shape == (2, 21, 34, 4)


# ---- the commands --------------------------------------------------------------------------

SETTINGS = ["--epochs=2", "--batch_size=8", "--width=0.5", "--depth=1", "--seed=1"]
SETTINGS += ["--augment=crop,flip,resize", "--progress=none", "--learning_rate=0.01"]


def test_masks_of_another_size_than_the_images_are_refused(tmp_path):
    images = RANDOM.randint(0, 255, (20, 16, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=(images[:, ::2, ::2, 0] > 99).astype(np.uint8))
    settings = {"data_dir": None, "validation_fraction": 0.1, "image_size": None, "seed": 0}
    with pytest.raises(DataError, match="images of 16x12 and 'y' are masks of 8x6"):
        loading.load(f"npz:{tmp_path / 'a.npz'}", task="segmentation", **settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("segmentation")
    write(place / "set", 44)
    return place


def trained(place, name, *flags):
    return train_run(f"folder:{place / 'set'}", place / name, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0")


def test_a_run_has_the_metrics_of_the_task_and_what_was_fitted(run):
    result = result_of(run)
    assert result["status"] == "finished" and result["model"] == "unet"
    names = ("mean_iou", "dice", "val_mean_iou", "val_dice", "test_mean_iou", "test_dice")
    assert all(0 < result[name] <= 1 for name in names)
    assert result["identical_inputs"] == {"validation": 0, "test": 0}
    fitted = json.loads((run / "fitted.json").read_text())
    assert fitted["values"] == [0, 1, 2]
    with zipfile.ZipFile(run / "model.keras") as archive:
        assert json.loads(archive.read("assets/fitted.json")) == fitted
    keras.models.load_model(run / "model.keras", compile=False)


@pytest.mark.slow
def test_streaming_gives_the_same_bits(place, run):
    other = trained(place, "streaming", "--devices=CPU:0", "--input=streaming")
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_replicas_compute_what_one_does(place, run):
    two = trained(place, "two", "--devices=CPU:0,CPU:1", "--tensorboard=none")
    for name in ("loss", "val_loss", "test_loss", "test_mean_iou"):
        assert result_of(two)[name] == pytest.approx(result_of(run)[name], rel=5e-3)


def test_evaluate_finds_the_test_again_and_counts_every_pixel(run, tmp_path, capsys):
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("loss", "mean_iou", "dice"):
        assert found[name] == pytest.approx(result_of(run)[f"test_{name}"], rel=1e-5)
    counts = np.array(found["confusion_matrix"])
    assert counts.sum() == found["examples"] * 24 * 32
    assert found["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert [each["name"] for each in found["classes"]] == ["0", "1", "2"]
    assert f"mean_iou        {found['mean_iou']:.4f}" in capsys.readouterr().out


def test_predict_writes_masks_and_overlays_in_the_images_own_size(run, place, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    Image.open(place / "set/images/000.png").resize((64, 40)).save(wide)
    capsys.readouterr()
    argv = (f"--run_dir={run}", f"--out={tmp_path / 'out'}", "--format=jsonl")
    assert command(predict.main, *argv, wide, place / "set/images/001.png") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == [str(wide), str(place / "set/images/001.png")]
    with Image.open(rows[0]["mask"]) as mask, Image.open(rows[0]["overlay"]) as overlay:
        assert (mask.size, mask.mode) == ((64, 40), "L") and overlay.size == (64, 40)
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
    assert sum(rows[1]["shares"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_exported_files_give_the_models_probabilities(run, tmp_path):
    formats = "--formats=keras,saved_model,onnx,litert,litert_int8"
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}", formats) == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    measured = stated["reference"]["dice"]
    images = np.zeros((2, 24, 32, 3), np.uint8)
    signature = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    found = signature(pixels=tf.constant(images))["probabilities"]
    assert found.shape == (2, 24, 32, 3) and 0 < measured <= 1
    np.testing.assert_allclose(tf.reduce_sum(found, axis=-1), 1, rtol=1e-5)
