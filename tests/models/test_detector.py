"""The detector's loss, metric and search for peaks against NumPy, by their definitions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpu.models.detection_loss import BINS, BOX_WEIGHT, SPREAD, CenterLoss, VOCMeanAP
from tfgpu.models.detections import MOST_LOG, OVERLAP, boxes_of_cells, detect, overlaps
from tfgpu.models.detector import STRIDE, centernet

ROWS, COLUMNS, CLASSES = 9, 7, 3
NOTHING = [0, 0, 0, 0, -1, 0]
RANDOM = np.random.RandomState(0)
OUTPUTS = RANDOM.normal(size=(4, ROWS, COLUMNS, CLASSES + 4)).astype(np.float32)


def boxes(random, number):
    """Rows of y, in an image of ROWS x COLUMNS cells."""
    limits = np.array([ROWS, COLUMNS]) * STRIDE
    low = random.uniform(0, limits - 4, (number, 2))
    high = low + random.uniform(2, limits - low)
    label = random.randint(0, CLASSES, (number, 1))
    return np.concatenate([low, high, label, np.zeros((number, 1))], axis=1).astype(np.float32)


# Five boxes, one of them a crowd; one; none; and two of which one lies in the other.
Y = np.tile(np.array(NOTHING, np.float32), (4, 5, 1))
Y[0] = boxes(RANDOM, 5)
Y[0, 4, 5] = 1
Y[1, :1] = boxes(RANDOM, 1)
Y[3, :2] = [[2, 2, 34, 26, 0, 0], [10, 8, 24, 20, 1, 0]]


def decoded(cells):
    """(rows, columns, 4) boxes of the last four outputs of cells."""
    found = np.zeros((ROWS, COLUMNS, 4))
    for i in range(ROWS):
        for j in range(COLUMNS):
            down, right, high, wide = cells[i, j].astype(float)
            row, column = (i + 0.5 + down) * STRIDE, (j + 0.5 + right) * STRIDE
            high, wide = np.exp(high) * STRIDE, np.exp(wide) * STRIDE
            found[i, j] = row - high / 2, column - wide / 2, row + high / 2, column + wide / 2
    return found


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def iou(a, b, *, generalised=False):
    both = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:4], b[2:4])])
    union = area(a) + area(b) - both
    around = area([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:4], b[2:4])])
    return both / union - ((around - union) / around if generalised else 0)


def near(box):
    """(rows, columns): the Gaussian of one box."""
    middle = [int((box[k] + box[k + 2]) / 2 // STRIDE) for k in (0, 1)]
    radius = [int(SPREAD / 2 * (box[k + 2] - box[k]) / STRIDE) for k in (0, 1)]
    found = np.zeros((ROWS, COLUMNS))
    for i in range(ROWS):
        for j in range(COLUMNS):
            apart = abs(i - middle[0]), abs(j - middle[1])
            if apart[0] <= radius[0] and apart[1] <= radius[1]:
                spread = [(2 * r + 1) / 6 for r in radius]
                powers = [d**2 / (2 * s**2) for d, s in zip(apart, spread, strict=True)]
                found[i, j] = np.exp(-sum(powers))
    return found


def expected_loss(y, outputs):
    """Of one example, cell by cell."""
    objects = [row for row in y if row[4] >= 0 and not row[5]]
    crowds = [row for row in y if row[4] >= 0 and row[5]]
    count = max(len(objects), 1)
    gaussians = [near(row) for row in objects]
    focal = 0.0
    for i in range(ROWS):
        for j in range(COLUMNS):
            for label in range(CLASSES):
                own = [
                    g[i, j] for g, row in zip(gaussians, objects, strict=True) if row[4] == label
                ]
                target = max(own, default=0.0)
                middle = STRIDE * (np.array([i, j]) + 0.5)
                for row in crowds:
                    if row[4] == label and (row[:2] <= middle).all() and (middle <= row[2:4]).all():
                        target = max(target, 0.9999)
                p = 1 / (1 + np.exp(-float(outputs[i, j, label])))
                focal -= (
                    (1 - p) ** 2 * np.log(p)
                    if target == 1
                    else (1 - target) ** 4 * p**2 * np.log(1 - p)
                )
    found, apart = decoded(outputs[..., CLASSES:]), 0.0
    own_cells = {number: [] for number in range(len(objects))}
    for i in range(ROWS):
        for j in range(COLUMNS):
            there = [n for n in own_cells if gaussians[n][i, j] > 0]
            if there:
                own_cells[min(there, key=lambda n: area(objects[n]))].append((i, j))
    for number, cells in own_cells.items():
        total = sum(gaussians[number][cell] for cell in cells)
        for cell in cells:
            weight = gaussians[number][cell] / total
            apart += weight * (1 - iou(found[cell], objects[number], generalised=True))
    return focal / count + BOX_WEIGHT * apart / count


def test_the_loss_is_one_value_an_example_by_its_definition():
    found = CenterLoss(CLASSES).call(Y, OUTPUTS).numpy()
    expected = [expected_loss(y, outputs) for y, outputs in zip(Y, OUTPUTS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_loss_and_gradient_are_finite_at_the_ends_of_float16(value):
    outputs = tf.constant(np.full_like(OUTPUTS, value))
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = CenterLoss(CLASSES).call(Y, outputs)
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, outputs)).all()


def test_the_loss_is_saved_and_read_back():
    loss = keras.losses.deserialize(keras.losses.serialize(CenterLoss(CLASSES)))
    assert loss.num_classes == CLASSES


# ---- detections ----------------------------------------------------------------------------


def expected_detections(outputs, count):
    """[(score, box, class)] of one example, with 0 for the score of suppressed ones."""
    found = decoded(np.clip(outputs[..., CLASSES:], -MOST_LOG, MOST_LOG))
    peaks = []
    for i in range(ROWS):
        for j in range(COLUMNS):
            around = outputs[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            for label in range(CLASSES):
                if outputs[i, j, label] == around[..., label].max():
                    score = 1 / (1 + np.exp(-float(outputs[i, j, label])))
                    peaks.append((score, found[i, j], label))
    peaks = sorted(peaks, key=lambda peak: -peak[0])[:count]
    kept = []
    for number, (score, box, label) in enumerate(peaks):
        surer = [other for _, other, its in peaks[:number] if its == label]
        kept.append((0 if any(iou(box, o) > OVERLAP for o in surer) else score, box, label))
    return kept


def test_detections_are_peaks_without_those_that_overlap():
    outputs = OUTPUTS.copy()
    outputs[..., CLASSES:] *= 0.3
    outputs[..., -2:] += 2.5  # Large enough to overlap.
    found = detect(outputs, count=20)
    suppressed = 0
    for i in range(len(outputs)):
        expected = expected_detections(outputs[i], 20)
        some = len(expected)
        np.testing.assert_allclose(found.scores[i, :some], [e[0] for e in expected], rtol=1e-5)
        np.testing.assert_allclose(found.boxes[i, :some], [e[1] for e in expected], rtol=1e-4)
        np.testing.assert_array_equal(found.classes[i, :some], [e[2] for e in expected])
        assert not found.scores[i, some:].numpy().any()
        suppressed += sum(not e[0] for e in expected)
    assert suppressed


def test_overlaps_are_intersections_over_unions():
    a, b = Y[:2, :, :4], Y[2:, :, :4]
    found = overlaps(a, b).numpy()
    for n in range(2):
        for i in range(5):
            for j in range(5):
                both = area(a[n, i]) + area(b[n, j])
                expected = iou(a[n, i], b[n, j]) if both else 0
                assert found[n, i, j] == pytest.approx(expected, abs=1e-6)


# ---- the metric ----------------------------------------------------------------------------


def voc_average_precision(detections, truth):
    """As the development kit of VOC 2012 has it, for one class.

    Args:
        detections: [(image, score, box)].
        truth: {image: [(box, crowd)]}.
    """
    taken, right = set(), []
    for image, _, box in sorted(detections, key=lambda one: -one[1]):
        own = [iou(box, other) for other, _ in truth[image]]
        best = int(np.argmax(own)) if own else -1
        if own and own[best] >= 0.5:
            if truth[image][best][1]:
                continue
            right.append((image, best) not in taken)
            taken.add((image, best))
        else:
            right.append(False)
    right = np.array(right, bool)
    total = sum(not crowd for rows in truth.values() for _, crowd in rows)
    if not total:
        return None
    recall = np.concatenate([[0], np.cumsum(right) / total, [1]])
    precision = np.cumsum(right) / np.maximum(np.arange(len(right)) + 1, 1)
    precision = np.concatenate([[0], precision, [0]])
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def cells_of(y, random):
    """Outputs that find most of the boxes of y, some twice, with scores of bins of their own."""
    outputs = np.zeros((len(y), ROWS, COLUMNS, CLASSES + 4), np.float32)
    outputs[..., :CLASSES] = -200  # A score of 0.
    bins = iter(random.permutation(np.arange(5, BINS - 5)))
    for n, rows in enumerate(y):
        for row in rows[rows[:, 4] >= 0]:
            for _ in range(random.randint(0, 3)):
                i, j = random.randint(ROWS), random.randint(COLUMNS)
                score = (next(bins) + 0.5) / BINS
                label = int(row[4]) if random.uniform() < 0.8 else random.randint(CLASSES)
                outputs[n, i, j, label] = np.log(score / (1 - score))
                box = row[:4] / STRIDE + random.uniform(-0.4, 0.4, 4)
                sides = np.maximum(box[2:] - box[:2], 0.3)
                middle = box[:2] + sides / 2 - [i + 0.5, j + 0.5]
                outputs[n, i, j, CLASSES:] = [*middle, *np.log(sides)]
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_is_that_of_voc_where_every_score_has_a_bin(seed):
    random = np.random.RandomState(seed)
    y = np.tile(np.array(NOTHING, np.float32), (8, 5, 1))
    for n in range(8):
        number = random.randint(0, 6)
        y[n, :number] = boxes(random, number)
        y[n, :number, 5] = random.uniform(size=number) < 0.2
    outputs = cells_of(y, random)
    metric = VOCMeanAP(num_classes=CLASSES)
    for some in (slice(0, 5), slice(5, 8)):
        metric.update_state(y[some], outputs[some])
    found = detect(outputs, count=100)
    each = []
    for label in range(CLASSES):
        detections = [
            (n, float(found.scores[n, k]), found.boxes[n, k].numpy())
            for n in range(8)
            for k in range(found.scores.shape[1])
            if found.classes[n, k] == label and found.scores[n, k] > 0
        ]
        truth = {n: [(row[:4], row[5]) for row in y[n] if row[4] == label] for n in range(8)}
        each.append(voc_average_precision(detections, truth))
    expected = np.mean([ap for ap in each if ap is not None])
    assert 0.2 < expected < 0.95
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)


# ---- the network ---------------------------------------------------------------------------


def test_the_network_takes_images_of_any_size():
    model = centernet(image_shape=(37, 50, 1), num_classes=4, width=0.25, depth=2)
    outputs = model(np.zeros((2, 37, 50, 1), np.float32))
    assert outputs.shape == (2, 10, 13, 8) and outputs.dtype == tf.float32
    assert boxes_of_cells(outputs[..., 4:]).shape == (2, 10, 13, 4)


def test_a_network_that_is_too_deep_for_its_images_says_so():
    with pytest.raises(ValueError, match="at least 32x32 pixels, not 24x40"):
        centernet(image_shape=(24, 40, 3), num_classes=2)
