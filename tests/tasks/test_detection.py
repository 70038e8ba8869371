"""Detection: augmentation, report and exported files by their parts; boxes of TFDS."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from mocked import mocked
from PIL import Image
from shaped import NAMES

from tfgpu.data.augment import GREY
from tfgpu.errors import RequestError
from tfgpu.predict.settings import PredictSettings
from tfgpu.tasks import loading
from tfgpu.tasks.detection import TASK, coco_evaluation
from tfgpu.tasks.detection.augmentation import AUGMENT, VISIBLE
from tfgpu.tasks.detection.drawing import Box, draw
from tfgpu.tasks.detection.predictor import BoxPredictor
from tfgpu.tasks.detection.serving import BOXES, CLASSES, SCORES, serve
from tfgpu.tasks.task import DataSpec

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
HEIGHT, WIDTH = 40, 56
NOTHING = [0, 0, 0, 0, -1, 0]


def pictures(number=24):
    """Black images with one white box each, and their boxes, with a row of padding."""
    images = np.zeros((number, HEIGHT, WIDTH, 1), np.uint8)
    y = np.tile(np.array(NOTHING, np.float32), (number, 2, 1))
    for i in range(number):
        top, left = RANDOM.randint(0, HEIGHT - 8), RANDOM.randint(0, WIDTH - 8)
        bottom, right = RANDOM.randint(top + 6, HEIGHT + 1), RANDOM.randint(left + 6, WIDTH + 1)
        images[i, top:bottom, left:right] = 255
        y[i, 0] = top, left, bottom, right, i % 3, 0
    return images, y


# ---- augmentation --------------------------------------------------------------------------


def cut(box, y):
    """A row of y for a box that was moved, by the rule."""
    top, left, bottom, right = box
    inside = max(top, 0), max(left, 0), min(bottom, HEIGHT), min(right, WIDTH)
    left_over = max(inside[2] - inside[0], 0) * max(inside[3] - inside[1], 0)
    if not left_over:
        return NOTHING
    return [*inside, y[4], float(left_over < VISIBLE * (bottom - top) * (right - left))]


def shifted(image, y, draw):
    """An image and its box, pixel by pixel."""
    most = HEIGHT // 8, WIDTH // 8
    down, right = (int(d * (2 * m + 1)) - m for d, m in zip(draw, most, strict=True))
    moved = np.full_like(image, GREY)
    for i in range(HEIGHT):
        for j in range(WIDTH):
            if 0 <= i - down < HEIGHT and 0 <= j - right < WIDTH:
                moved[i, j] = image[i - down, j - right]
    return moved, cut(y[:4] + [down, right, down, right], y)


def mirrored(image, y, draw):
    if draw[0] >= 0.5:
        return image, y
    return image[:, ::-1], [y[0], WIDTH - y[3], y[2], WIDTH - y[1], *y[4:]]


def resized(image, y, draw):
    """By linear interpolation between the middles of pixels."""
    scale, stretch = 1.25 ** (2 * draw[0] - 1), 1.2 ** (draw[1] - 0.5)
    factors = scale * stretch, scale / stretch
    moved = image[..., 0].astype(float)
    there = []
    for axis, (side, factor) in enumerate(zip((HEIGHT, WIDTH), factors, strict=True)):
        at = (np.arange(side) + 0.5 - side / 2) / factor + side / 2 - 0.5
        there.append((at >= -0.5) & (at <= side - 0.5))
        moved = np.apply_along_axis(
            lambda row, at=at, side=side: np.interp(at, np.arange(side), row), axis, moved
        )
    moved = np.where(there[0][:, None] & there[1], np.round(moved), GREY)[..., None]
    middle = np.array([HEIGHT, WIDTH] * 2) / 2
    return moved, cut(middle + (y[:4] - middle) * np.array(factors * 2), y)


@pytest.mark.parametrize(
    ("name", "reference"), [("crop", shifted), ("flip", mirrored), ("resize", resized)]
)
def test_boxes_move_as_their_image_does(name, reference):
    images, y = pictures()
    draws = RANDOM.uniform(size=(len(y), AUGMENT[name].numbers)).astype(np.float32)
    moved, moved_y = (
        part.numpy() for part in AUGMENT[name].function(tf.constant(images), y, draws)
    )
    assert (moved.dtype, moved.shape, moved_y.shape) == (np.uint8, images.shape, y.shape)
    for i in range(len(y)):
        expected, box = reference(images[i], y[i, 0], draws[i])
        # Halves may be rounded either way.
        assert np.abs(moved[i].astype(int) - expected).max() <= 1
        np.testing.assert_allclose(moved_y[i, 0], box, atol=1e-3)
    np.testing.assert_array_equal(moved_y[:, 1], y[:, 1])
    assert (moved_y[:, 0] != y[:, 0]).any()


@pytest.mark.parametrize("name", ["crop", "flip", "resize"])
def test_boxes_have_the_same_bits_whatever_share_of_the_batch_they_are_in(name):
    images, y = pictures()
    draws = RANDOM.uniform(size=(len(y), AUGMENT[name].numbers)).astype(np.float32)
    whole = (tf.constant(images), tf.constant(y), tf.constant(draws))
    together = AUGMENT[name].function(*whole)
    for count in (1, 3, 4, 7):
        shares = [
            AUGMENT[name].function(*(part[start : start + count] for part in whole))
            for start in range(0, len(y), count)
        ]
        for expected, found in zip(together, zip(*shares, strict=True), strict=True):
            np.testing.assert_array_equal(tf.concat(found, 0), expected)


def test_what_an_edge_leaves_little_of_counts_nowhere():
    y = np.array([[[0, 10, 6, 30, 1, 0], [0, 10, 20, 30, 1, 0], [0, 10, 5, 30, 1, 0]]], np.float32)
    images = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    # Up by 5 pixels, of which the second box has enough left.
    _, moved = AUGMENT["crop"].function(tf.constant(images), y, np.array([[0.0, 0.5]], np.float32))
    np.testing.assert_array_equal(moved[0, :2, 4:], [[1, 1], [1, 0]])
    np.testing.assert_array_equal(moved[0, 2], NOTHING)


# ---- data ----------------------------------------------------------------------------------


def load(name, **settings):
    given = {"data_dir": None, "validation_fraction": 0.0, "image_size": (48, 64), "seed": 0}
    return loading.load(name, **given | settings)


def with_true_boxes(example):
    """An example whose boxes, which are made up, have their corners in order, and a class each."""
    objects = example["objects"]
    number = min(map(len, objects.values()))
    objects = {name: part[:number] for name, part in objects.items()}
    boxes = [
        tfds.features.BBox(min(a, c), min(b, d), max(a, c), max(b, d))
        for a, b, c, d in objects["bbox"].tolist()
    ]
    return {**example, "objects": {**objects, "bbox": boxes}}


@pytest.mark.parametrize(
    ("name", "label", "crowd"),
    [
        ("voc/2007", "label", "is_difficult"),
        ("kitti", "type", None),
        ("coco/2017", "label", "is_crowd"),
    ],
)
def test_sets_of_tfds_are_read_by_the_types_of_their_features(name, label, crowd, tmp_path):
    examples = mocked(name, tmp_path, 6, change=with_true_boxes)
    data = load(name.partition("/")[0], data_dir=str(tmp_path), task="detection")
    images, y = data.train.load_arrays()
    assert images.shape == (6, 48, 64, 3)
    expected = []
    for example in examples:
        objects = example["objects"]
        marked = objects[crowd] if crowd else np.zeros(len(objects[label]))
        for box, number, mark in zip(objects["bbox"], objects[label], marked, strict=True):
            expected.append([*np.array(box) * [48, 64, 48, 64], number, mark])
    # TFDS shuffles the examples that it stores.
    found = y[y[..., 4] >= 0].tolist()
    assert expected
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-4)
    assert (y[y[..., 4] < 0] == NOTHING).all()


# ---- the report ----------------------------------------------------------------------------


def measured(y, boxes, scores, labels, *, names=("a", "b")):
    evaluation = coco_evaluation.CocoEvaluation(names, 100)
    for each in zip(y, boxes, scores, labels, strict=True):
        evaluation.add(*(np.array(part, np.float32) for part in each))
    return evaluation.result()


TRUTH = [[[0, 0, 10, 10, 0, 0], NOTHING], [[5, 5, 25, 45, 1, 0], [30, 0, 40, 30, 1, 1]]]


def test_boxes_that_are_found_exactly_have_a_precision_of_one():
    found = measured(TRUTH, [[[0, 0, 10, 10]], [[5, 5, 25, 45]]], [[0.9], [0.2]], [[0], [1]])
    assert found["figures"] == pytest.approx({"map": 1, "map_50": 1, "map_75": 1, "recall": 1})
    assert [each["boxes"] for each in found["classes"]] == [1, 1]


def test_crowds_count_neither_for_nor_against_and_mistakes_do():
    sure = [[[0, 0, 10, 10]], [[5, 5, 25, 45], [30, 0, 40, 30]]]
    same = measured(TRUTH, sure, [[0.9], [0.2, 0.8]], [[0], [1, 1]])
    assert same["figures"]["map"] == pytest.approx(1)
    sure[1][1] = [0, 60, 40, 90]
    worse = measured(TRUTH, sure, [[0.9], [0.2, 0.8]], [[0], [1, 1]])
    assert worse["classes"][1]["ap"] == pytest.approx(0.5)
    # Three quarters of the box: right at 0.5 to 0.75, which are six of ten.
    sure = [[[0, 0, 10, 7.5]], [[5, 5, 25, 45]]]
    less = measured(TRUTH, sure, [[0.9], [0.2]], [[0], [1]])
    assert less["classes"][0]["ap"] == pytest.approx(0.6)
    assert less["classes"][0]["ap_50"] == pytest.approx(1)


def test_a_class_without_a_box_has_no_figures():
    found = measured(TRUTH[:1], [[]], [[]], [[]])
    assert found["classes"][1]["ap"] is None and found["figures"]["map"] == 0


def test_pycocotools_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(RequestError, match=r"pip install 'tfgpu\[detection\]'"):
        coco_evaluation.coco_tools()


# ---- predictions and exported files --------------------------------------------------------


def spec(height=HEIGHT, width=WIDTH):
    return DataSpec(
        x=tf.TensorSpec((height, width, 3), tf.uint8),
        y=tf.TensorSpec((4, 6), tf.float32),
        class_names=NAMES,
        fitted={"max_boxes": 4},
    )


def cells(*, row, column, label, sides):
    """Outputs for one image that have one detection, in the middle of a cell."""
    outputs = np.full((1, HEIGHT // 4, WIDTH // 4, 7), -9, np.float32)
    outputs[0, row, column, label] = 2.0
    outputs[0, row, column, 3:] = [0, 0, *np.log(np.array(sides) / 4)]
    return outputs


@pytest.mark.parametrize("format", ["jsonl", "csv", "table"])
def test_boxes_are_said_in_the_pixels_of_the_image_itself(format, tmp_path):
    # Three times as wide as what the model sees, and half as high; the box reaches beyond it.
    file = tmp_path / "wide.png"
    Image.new("RGB", (WIDTH * 3, HEIGHT // 2)).save(file)
    predictor = BoxPredictor(spec(), PredictSettings(run_dir="x", paths=("y",), format=format))
    predictor.folder = tmp_path / "out"
    raw = predictor.raw(str(file))
    outputs = cells(row=1, column=7, label=1, sides=(16, 8))
    # Its middle is (6, 30): from -2 to 14, and from 26 to 34.
    expected = [78.0, 0.0, 24.0, 7.0]
    score = pytest.approx(1 / (1 + np.exp(-2)))
    (line,) = predictor.lines([str(file)], outputs)
    if format == "jsonl":
        (box,) = json.loads(line)["boxes"]
        assert box == {"label": "square", "score": score, "bbox": expected}
    elif format == "csv":
        cell = line.split(",")
        assert predictor.header_of([str(file)], outputs)[-4:] == ["left", "top", "width", "height"]
        assert cell[1] == "square" and list(map(float, cell[3:])) == expected
    else:
        assert "1 square" in line
    ((written,),) = predictor.written([str(file)], [raw], outputs)
    (tmp_path / "drawn.png").write_bytes(written.content)
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert written.name == "wide.boxes.png" and drawn.shape == raw.shape
    assert drawn[0, 80].any() and not drawn[:, :78].any()


def test_a_box_is_drawn_along_its_inner_edge():
    drawn = draw(np.zeros((20, 30, 1), np.uint8), [Box((4.0, 6.0, 15.0, 26.0), 1)]).any(axis=-1)
    expected = np.zeros((20, 30), bool)
    expected[4:15, 6:26] = True
    expected[5:14, 7:25] = False
    np.testing.assert_array_equal(drawn, expected)


def test_the_gate_knows_detections_in_another_order_and_sees_others():
    serving = serve(spec(), "saved_model")
    assert serving.difference is not None
    found = {
        BOXES: np.array([[[1, 2, 11, 22], [20, 4, 30, 24], [0, 0, 5, 5]]], np.float32),
        SCORES: np.array([[0.8, 0.8, 0.01]], np.float32),
        CLASSES: np.array([[0, 0, 2]], np.int32),
    }
    turned = {name: value[:, [1, 0, 2]] for name, value in found.items()}
    assert serving.difference(turned, found) == 0
    moved = {**found, BOXES: found[BOXES] + [WIDTH * 0.01, 0, 0, 0]}
    assert serving.difference(moved, found) == pytest.approx(0.01, rel=1e-3)
    fewer = {**found, SCORES: np.array([[0.8, 0.0, 0.01]], np.float32)}
    assert serving.difference(fewer, found) > 0.3 and serving.difference(found, fewer) > 0.3
    assert np.isnan(serving.difference({**found, SCORES: found[SCORES] * np.nan}, found))
    y = np.array([[[2, 1, 22, 11, 0, 0], [0, 40, 10, 50, 1, 0], NOTHING, NOTHING]], np.float32)
    # One of two is right, and one of two is found.
    assert serving.score(found, y) == pytest.approx([0.5])
    np.testing.assert_array_equal(serving.decide(found), [[2, 0, 0]])


def test_the_objective_of_a_search_is_the_metric_and_rises():
    assert TASK.objective == TASK.metrics(spec())[0].name and TASK.maximize
