"""What is in the event files: read back as TensorBoard does, and looked at in a real browser."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import browser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.graph.keras_util import keras_model_to_graph_def
from tensorboard.plugins.hparams import plugin_data_pb2

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, training_batches
from tfgpu.tensorboard import pictures

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 127).astype(np.int32)
EXAMPLES = Examples(
    40,
    lambda positions: (tf.gather(IMAGES, positions), tf.gather(LABELS, positions)),
    lambda image, label: (image, label),
)
BATCH, STEPS, EPOCHS = 4, 10, 3
PARTS = ("input", "device", "host", "checkpoint")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The measured peak goes where it is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def build(strategy=None, *, together=1, **compiled):
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        inputs = keras.Input((8, 8, 3), name="pixels")
        x = keras.layers.Rescaling(1 / 255, name="normalise")(inputs)
        x = keras.layers.Conv2D(3, 3, activation="relu", name="conv1")(x)
        x = keras.layers.Dense(2, dtype="float32", name="logits")(keras.layers.Flatten()(x))
        model = tfgpu.Model(inputs, x)
        model.compile(
            compiled.pop("optimizer", lambda: keras.optimizers.SGD(0.01))(),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=together,
            **compiled,
        )
    return model


def fit(folder, model=None, *, epochs=EPOCHS, callbacks=(), augment=(), **arguments):
    model = model or build()
    board = tfgpu.TensorBoard(folder, **arguments)
    batches = training_batches(EXAMPLES, batch_size=BATCH, seed=0, augment=augment)
    model.fit(
        batches,
        steps_per_epoch=batches.steps_per_epoch,
        epochs=epochs,
        validation_data=evaluation_batches(EXAMPLES, batch_size=BATCH),
        shuffle=False,
        verbose=0,
        callbacks=[board, *callbacks],
    )
    return model, board


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def steps(folder, tag):
    return [event.step for event in events(folder).Tensors(tag)]


def values(folder, tag):
    return [float(tf.make_ndarray(event.tensor_proto)) for event in events(folder).Tensors(tag)]


def picture(folder, tag):
    *_, last = events(folder).Tensors(tag)
    width, height, *images = tf.make_ndarray(last.tensor_proto)
    decoded = tf.io.decode_png(images[0]).numpy()
    assert decoded.shape[:2] == (int(height), int(width))
    return decoded


def operations(graph):
    """The (name, type) of every node of a graph, those of its functions too."""
    yield from ((node.name, node.op) for node in graph.node)
    for function in graph.library.function:
        yield from ((node.name, node.op) for node in function.node_def)


# ---- scalars -------------------------------------------------------------------------------


def test_tags_and_steps_are_those_keras_users_know(tmp_path):
    # Executions of 3 steps; every 4 batches the next one that ends is written.
    fit(tmp_path, build(together=3), update_freq=4)
    for name in ("epoch_loss", "epoch_accuracy", "epoch_learning_rate"):
        assert steps(tmp_path / "train", name) == [0, 1, 2]
    for name in ("epoch_loss", "epoch_accuracy"):
        assert steps(tmp_path / "validation", name) == [0, 1, 2]
    assert steps(tmp_path / "train", "batch_loss") == steps(tmp_path / "train", "batch_accuracy")
    written = steps(tmp_path / "train", "batch_loss")
    assert written == sorted(set(written))
    assert len(written) == EPOCHS * STEPS // 4 and written[-1] <= EPOCHS * STEPS
    assert all(
        step // 4 > before // 4 for before, step in zip([0, *written], written, strict=False)
    )


def test_by_epoch_no_batches_are_written_and_performance_once(tmp_path):
    fit(tmp_path)
    tags = events(tmp_path / "train").Tags()["tensors"]
    assert not [tag for tag in tags if tag.startswith("batch_")]
    assert steps(tmp_path / "train", "performance/samples_per_second") == [10, 20, 30]


def test_batches_are_counted_over_all_epochs(tmp_path):
    fit(tmp_path, update_freq="batch")
    assert steps(tmp_path / "train", "batch_loss") == list(range(1, EPOCHS * STEPS + 1))


def test_the_parts_of_a_step_are_the_whole(tmp_path):
    fit(tmp_path, update_freq=5)
    whole = np.array(values(tmp_path / "train", "performance/step_milliseconds"))
    parts = [values(tmp_path / "train", f"performance/step_milliseconds_{p}") for p in PARTS]
    assert len(whole) == EPOCHS * STEPS // 5 and (whole > 0).all()
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-4)
    rate = np.array(values(tmp_path / "train", "performance/samples_per_second"))
    np.testing.assert_allclose(rate, BATCH / whole * 1e3, rtol=1e-4)
    assert min(values(tmp_path / "train", "performance/flops_utilization")) > 0
    assert min(values(tmp_path / "train", "memory/host")) > 0


def test_the_sums_over_replicas_are_within_the_step(tmp_path, mirrored2):
    model, _ = fit(tmp_path, build(mirrored2), update_freq=5)
    whole, sums, exposed = (
        np.array(values(tmp_path / "train", f"performance/step_milliseconds{part}"))
        for part in ("", "_all_reduce", "_all_reduce_exposed")
    )
    assert ((0 < exposed) & (exposed <= sums) & (sums < whole)).all()
    sizes = values(tmp_path / "train", "performance/all_reduce_bytes")
    assert set(sizes) == {4 * model.count_params()}


def test_time_that_the_input_takes_is_told_from_the_devices(tmp_path):
    model = build()

    def slow(x):
        time.sleep(0.02)
        return x

    images = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(BATCH)
    images = images.map(
        lambda x, y: (tf.ensure_shape(tf.py_function(slow, [x], x.dtype), x.shape), y)
    )
    model.fit(images, epochs=2, shuffle=False, verbose=0, callbacks=[tfgpu.TensorBoard(tmp_path)])
    (_, waited) = values(tmp_path / "train", "performance/step_milliseconds_input")
    (_, whole) = values(tmp_path / "train", "performance/step_milliseconds")
    assert 10 < waited <= whole


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_gradient_norm_is_that_of_the_global_batch(tmp_path, mirrored2, replicas):
    model = build(mirrored2 if replicas == 2 else None, jit_compile=True)
    before = model.get_weights()
    batch = training_batches(EXAMPLES, batch_size=40, seed=0)
    callback = tfgpu.TensorBoard(tmp_path, update_freq="batch")
    # The first execution is compiled, and left out.
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: weights.append(model.get_weights())
    )
    model.fit(batch, steps_per_epoch=2, shuffle=False, verbose=0, callbacks=[callback, keep])
    moved = [(b - a) / 0.01 for a, b in zip(*weights, strict=True)]
    expected = np.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in moved))
    _, norm = values(tmp_path / "train", "training/gradient_norm")
    assert norm == pytest.approx(expected, rel=1e-3)
    assert len(before) == len(moved)


def test_the_loss_scale_is_shown_and_the_norm_is_without_it(tmp_path):
    fit(tmp_path / "float32")
    keras.config.set_dtype_policy("mixed_float16")
    fit(tmp_path / "float16")
    assert values(tmp_path / "float16/train", "training/loss_scale") == [2.0**15] * EPOCHS
    norms = [
        values(tmp_path / name / "train", "training/gradient_norm")
        for name in ("float32", "float16")
    ]
    np.testing.assert_allclose(*norms, rtol=0.1)
    assert "training/loss_scale" not in events(tmp_path / "float32/train").Tags()["tensors"]


def test_the_learning_rate_is_that_of_the_updates(tmp_path):
    def optimizer():
        schedule = keras.optimizers.schedules.PolynomialDecay(
            1.0, decay_steps=15, end_learning_rate=0.0
        )
        return keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)

    fit(tmp_path, build(optimizer=optimizer))
    expected = [1 - 5 / 15, 1 - 10 / 15, 0.0]
    assert values(tmp_path / "train", "epoch_learning_rate") == pytest.approx(expected, abs=1e-6)


# ---- graphs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "jit_compile", "together"), [(1, False, 1), (2, False, 4), (2, True, 4)]
)
def test_a_person_finds_conv1_its_gradient_and_its_update(
    tmp_path, mirrored2, replicas, jit_compile, together
):
    strategy = mirrored2 if replicas == 2 else None
    fit(tmp_path, build(strategy, together=together, jit_compile=jit_compile), epochs=1)
    graph = events(tmp_path / "train").Graph()
    graph = tf.compat.v1.GraphDef.FromString(graph.SerializeToString())
    nodes = dict(operations(graph))
    assert nodes["forward/conv1/convolution"] == "Conv2D"
    gradients = [n for n, op in nodes.items() if op == "Conv2DBackpropFilter"]
    assert len(gradients) == replicas
    assert re.search(r"gradient_tape/.*conv1", gradients[0])
    updates = [name for name in nodes if re.match(r"update/.*conv1/kernel/", name)]
    assert updates
    assert "AssignVariableOp" in nodes.values()
    assert any("CollectiveReduce" in op for op in nodes.values()) is (replicas == 2)
    assert any(name.startswith("replica_1/forward/conv1/") for name in nodes) is (replicas == 2)
    # Whole: every input of a node is there.
    with tf.Graph().as_default():
        tf.graph_util.import_graph_def(graph)


def test_the_conceptual_graph_is_the_models(tmp_path):
    fit(tmp_path, epochs=1)
    (event,) = events(tmp_path / "train").Tensors("keras")
    graph = keras_model_to_graph_def(json.loads(tf.make_ndarray(event.tensor_proto).item()))
    names = [node.name.partition("/")[2] for node in graph.node]
    assert names[:3] == ["pixels", "normalise", "conv1"]


def test_without_graphs(tmp_path):
    fit(tmp_path, epochs=1, write_graph=False)
    tags = events(tmp_path / "train").Tags()
    assert not tags["graph"] and "keras" not in tags["tensors"]


# ---- pictures ------------------------------------------------------------------------------


def test_a_batch_is_shown_as_the_network_sees_it(tmp_path):
    fit(tmp_path, augment=("crop", "flip"), class_names=("dark", "light"))
    assert steps(tmp_path / "train", "batch") == [0]
    batches = training_batches(EXAMPLES, batch_size=BATCH, seed=0, augment=("crop", "flip"))
    images, labels = batches.device_map(next(iter(batches.take(1))), ())
    captions = [[("dark", "light")[label]] for label in labels]
    np.testing.assert_array_equal(
        picture(tmp_path / "train", "batch"), pictures.grid(images.numpy(), captions)
    )


def test_batches_of_every_epoch(tmp_path):
    fit(tmp_path, write_batches="every")
    assert steps(tmp_path / "train", "batch") == [0, 1, 2]


def test_histograms_by_layer(tmp_path):
    fit(tmp_path, histogram_freq=1, update_freq=7)
    assert steps(tmp_path / "train", "conv1/kernel/histogram") == [0, 1, 2]


def test_the_confusion_matrix_and_the_surest_mistakes(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        pictures, "confusion", lambda m, names: shown.update(matrix=m, names=names) or IMAGES[0]
    )
    monkeypatch.setattr(
        pictures,
        "grid",
        lambda i, captions=None: shown.update(images=i, captions=captions) or IMAGES[0],
    )
    model, board = fit(tmp_path, epochs=1, class_names=("dark", "light"))
    outputs = keras.ops.softmax(model.predict(IMAGES, verbose=0)).numpy()
    board.show_predictions(evaluation_batches(EXAMPLES, batch_size=7), step=10)
    expected = np.zeros((2, 2), int)
    np.add.at(expected, (LABELS, outputs.argmax(1)), 1)
    np.testing.assert_array_equal(shown["matrix"], expected)
    assert shown["names"] == ["dark", "light"]
    wrong = np.flatnonzero(outputs.argmax(1) != LABELS)
    surest = wrong[np.argsort(-outputs[wrong].max(1), kind="stable")][:16]
    assert len(wrong) > 0
    np.testing.assert_array_equal(shown["images"], IMAGES[surest])
    name = ("dark", "light")[LABELS[surest[0]]]
    assert shown["captions"][0][0] == f"is {name}"
    assert steps(tmp_path / "validation", "confusion_matrix") == [10]


def test_a_grid_enlarges_small_images_without_blurring():
    images = RANDOM.integers(0, 256, (3, 8, 6, 1), dtype=np.uint8)
    sheet = pictures.grid(images)
    assert sheet.dtype == np.uint8 and sheet.shape[-1] == 3
    first = sheet[4 : 4 + 96, 4 : 4 + 72]
    np.testing.assert_array_equal(first[::12, ::12], np.repeat(images[0], 3, axis=-1))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_confusion_matrix_is_darkest_on_a_perfect_diagonal(classes):
    sheet = pictures.confusion(
        np.eye(classes, dtype=int) * 5, [f"class {i}" for i in range(classes)]
    )
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    dark = (sheet == (8, 48, 107)).all(axis=-1)
    assert dark.any() and dark.sum() < sheet.shape[0] * sheet.shape[1] / 2


# ---- settings ------------------------------------------------------------------------------


def test_a_name_of_two_lines_is_drawn_in_one():
    matrix = np.eye(2)
    drawn = pictures.confusion(matrix, ["on\ne", "two"])
    np.testing.assert_array_equal(drawn, pictures.confusion(matrix, ["on e", "two"]))


def test_settings_and_results_are_for_the_hparams_tab(tmp_path):
    _, board = fit(tmp_path, epochs=1, hparams={"rate": 0.1, "name": "a", "on": True, "off": None})
    board.show_result({"test_accuracy": 0.5, "missing": None}, step=10)
    accumulator = events(tmp_path)
    told = {}
    for tag in ("_hparams_/session_start_info", "_hparams_/session_end_info"):
        content = accumulator.SummaryMetadata(tag).plugin_data.content
        told[tag] = plugin_data_pb2.HParamsPluginData.FromString(content)
    start = told["_hparams_/session_start_info"].session_start_info.hparams
    assert {name: start[name].WhichOneof("kind") for name in start} == {
        "rate": "number_value",
        "name": "string_value",
        "on": "bool_value",
    }
    assert told["_hparams_/session_end_info"].session_end_info.status == 1  # Success.
    assert values(tmp_path, "result/test_accuracy") == [0.5]
    assert "result/missing" not in accumulator.Tags()["tensors"]


# ---- the profile ---------------------------------------------------------------------------


def profile(folder):
    (path,) = folder.glob("train/plugins/profile/*/*.xplane.pb")
    return path


def test_a_profile_has_the_steps_that_were_asked_for(tmp_path):
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    backup = tfgpu.BackupAndRestore(tmp_path / "backup")
    fit(tmp_path, build(together=4), profile_batch=(6, 8), callbacks=[backup], epochs=1)
    space = xplane_pb2.XSpace.FromString(profile(tmp_path).read_bytes())
    marked = [
        stat.int64_value
        for plane in space.planes
        for line in plane.lines
        for event in line.events
        for stat in event.stats
        if plane.event_metadata[event.metadata_id].name == "train"
        and plane.stat_metadata[stat.metadata_id].name == "step_num"
    ]
    assert sorted(marked) == [6, 7, 8]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_xprof_finds_the_steps(tmp_path, mirrored2, replicas):
    convert = pytest.importorskip("xprof.convert.raw_to_tool_data")
    backup = tfgpu.BackupAndRestore(tmp_path / "backup")
    model = build(mirrored2 if replicas == 2 else None, together=4)
    fit(tmp_path, model, profile_batch=(6, 8), callbacks=[backup], epochs=1)
    raw, _ = convert.xspace_to_tool_data([str(profile(tmp_path))], "overview_page", {})
    tables = json.loads(raw)
    (by_step,) = (
        t
        for t in tables
        if any(column.get("label") == "Step number" for column in t.get("cols", ()))
    )
    assert len(by_step["rows"]) == 3


# ---- a real TensorBoard in a real browser ----------------------------------------------------


@contextlib.contextmanager
def tensorboard(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", f"--port={port}"]
        + ["--host=127.0.0.1", "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if json.load(urllib.request.urlopen(f"{address}/data/runs")):
                    break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        process.kill()
        process.wait()


# Everything that the page shows, through the shadow roots of TensorBoard's elements.
TEXT = """
const texts = [];
function walk(node) {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) {
    if (child.nodeType === 3) texts.push(child.textContent.trim());
    else if (!['SCRIPT', 'STYLE', 'TEMPLATE'].includes(child.nodeName)) walk(child);
  }
}
walk(document.body);
return texts.filter(t => t).join('\\n');
"""


@pytest.mark.slow
def test_the_tabs_show_it_in_a_browser(tmp_path, mirrored2):
    settings = {"class_names": ("dark", "light"), "hparams": {"learning_rate": 0.01}}
    model = build(mirrored2, together=2)
    _, board = fit(tmp_path / "run", model, update_freq=2, **settings)
    board.show_predictions(evaluation_batches(EXAMPLES, batch_size=BATCH), step=30)
    board.show_result({"test_accuracy": 0.5}, step=30)
    expected = {
        "graphs&run=run%2Ftrain": ["forward", "gradient_tape", "all_reduce", "update"],
        "scalars": ["epoch_loss", "performance", "training"],
        "images": ["confusion_matrix", "batch"],
        "hparams": ["learning_rate", "result/test_accuracy"],
    }
    with tensorboard(tmp_path) as address, browser() as driver:
        for tab, words in expected.items():
            driver.get("about:blank")
            driver.get(f"{address}/#{tab}")
            deadline = time.monotonic() + 60
            while missing := [word for word in words if word not in driver.execute_script(TEXT)]:
                assert time.monotonic() < deadline, (tab, missing)
                time.sleep(0.5)
