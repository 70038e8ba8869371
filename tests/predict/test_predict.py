"""Labels for images: any size and mode, broken files, standard input, refusals."""

import base64
import csv
import io
import itertools
import json
import os
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import threads_as_workers
from commands import command, refusal
from finished_run import CLASSES, build_model, write_run
from PIL import Image

from tfgpu.cluster import membership
from tfgpu.predict import __main__ as predict
from tfgpu.predict import run
from tfgpu.tasks.parts.predictor import ImagePredictor, find_images

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and images of several sizes and modes."""
    place = tmp_path_factory.mktemp("predict")
    write_run(place / "run", build_model())
    random = np.random.RandomState(0)
    (place / "images" / "below").mkdir(parents=True)
    for name, mode, size in (
        ("a.png", "RGB", (8, 8)),
        ("b.png", "L", (20, 9)),
        ("c.jpg", "RGB", (5, 30)),
        ("d.png", "RGBA", (8, 8)),
        ("below/e.gif", "P", (12, 12)),
        ("below/f.png", "I;16", (9, 9)),
        ("below/g.jpg", "CMYK", (11, 11)),
    ):
        if mode == "I;16":
            image = Image.fromarray(random.randint(0, 65536, size[::-1]).astype(np.uint16))
        else:
            pixels = random.randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
            image = Image.fromarray(pixels).convert(mode)
        image.save(place / "images" / name)
    (place / "images" / "notes.txt").write_text("no image")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


IMAGES = ["a.png", "b.png", "c.jpg", "d.png", "below/e.gif", "below/f.png", "below/g.jpg"]
PATHS = [os.path.join("images", *name.split("/")) for name in IMAGES]


def predicted(capsys, *argv, code=0, devices="CPU:0"):
    """Runs the command; what it says on standard output and error."""
    capsys.readouterr()
    assert command(predict.main, "--run_dir=run", f"--devices={devices}", *argv) == code
    return capsys.readouterr()


def objects(capsys, *argv, **kwargs):
    lines = predicted(capsys, "--format=jsonl", *argv, **kwargs).out.splitlines()
    return [json.loads(line) for line in lines]


def test_images_of_any_size_and_mode_get_a_label_each(capsys):
    found = objects(capsys, "images")
    assert [each["path"] for each in found] == PATHS
    for each in found:
        assert list(each["probabilities"]) == list(CLASSES)
        assert sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert each["probability"] == each["probabilities"][each["label"]]
        assert each["probability"] == max(each["probabilities"].values())


def test_an_image_goes_in_by_the_stated_rule(capsys, place):
    (found,) = objects(capsys, PATHS[2])
    with Image.open(place / PATHS[2]) as image:
        pixels = np.asarray(image)[None]
    pixels = tf.image.resize(pixels, (8, 8), method="bilinear", antialias=True)
    pixels = np.clip(np.round(pixels), 0, 255)
    model = keras.models.load_model(place / "run" / "model.keras")
    expected = tf.nn.softmax(model(pixels))[0].numpy()
    np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batches_and_replicas_change_nothing(capsys, batch_size):
    alone = objects(capsys, "images", "--batch_size=7")
    shared = objects(capsys, "images", f"--batch_size={batch_size}", devices="CPU:0,CPU:1")
    assert [each["label"] for each in shared] == [each["label"] for each in alone]
    for one, other in zip(alone, shared, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_csv_has_a_header_and_every_probability(capsys):
    rows = list(csv.reader(io.StringIO(predicted(capsys, "images", "--format=csv").out)))
    assert rows[0] == ["path", "label", "probability", *CLASSES]
    assert [row[0] for row in rows[1:]] == PATHS
    for row in rows[1:]:
        assert float(row[2]) == max(map(float, row[3:]))
        assert row[1] == CLASSES[int(np.argmax(list(map(float, row[3:]))))]


def test_the_table_shows_the_likeliest_labels(capsys):
    (line,) = predicted(capsys, PATHS[0], "--top_k=2").out.splitlines()
    path, *cells = line.split()
    (found,) = objects(capsys, PATHS[0])
    ranked = sorted(found["probabilities"].items(), key=lambda item: -item[1])[:2]
    assert path == PATHS[0]
    assert cells == [cell for name, value in ranked for cell in (name, f"{value:.4f}")]


def test_a_broken_file_is_named_and_the_rest_goes_on(capsys, tmp_path, place):
    (tmp_path / "broken.png").write_bytes((place / PATHS[0]).read_bytes()[:60])
    said = predicted(
        capsys, "--format=csv", tmp_path / "broken.png", "gone.png", *PATHS[:2], code=1
    )
    assert len(said.out.splitlines()) == 3
    broken, gone, count = said.err.splitlines()
    assert broken.startswith("tfgpu: ") and "broken.png" in broken
    assert gone.startswith("tfgpu: gone.png")
    assert count == "tfgpu: 2 of 4 could not be read"


@pytest.mark.skipif(os.name == "nt", reason="names are not bytes")
def test_names_that_are_no_text_are_written_so_that_one_file_is_meant(capsys, tmp_path, place):
    os.symlink(place / PATHS[0], os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))
    os.symlink(place / PATHS[1], tmp_path / "new\nline.png")
    shown = [
        f"$'{tmp_path}/caf\\xe9.png'",
        f"$'{tmp_path}/new\\nline.png'",
    ]
    table = predicted(capsys, tmp_path).out
    assert [line.split("  ")[0] for line in table.splitlines()] == shown
    rows = list(csv.reader(io.StringIO(predicted(capsys, tmp_path, "--format=csv").out)))
    assert [row[0] for row in rows[1:]] == shown
    found = objects(capsys, tmp_path)
    assert [each["path"] for each in found] == [shown[0], f"{tmp_path}/new\nline.png"]
    bytes_of = base64.b64decode(found[0]["path_base64"])
    assert bytes_of == os.fsencode(tmp_path) + b"/caf\xe9.png"


def test_what_a_folder_holds_that_is_left_is_said_once(capsys, tmp_path, place):
    with Image.open(place / PATHS[3]) as image:
        image.save(tmp_path / "a.PNG")
        image.save(tmp_path / "b.gif", save_all=True, append_images=[image.rotate(90)])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    said = predicted(capsys, tmp_path)
    assert len(said.out.splitlines()) == 2
    assert said.err == (
        "tfgpu: left out: 2 hidden or of a system (.ipynb_checkpoints, Thumbs.db); "
        "1 a second time, by a link (loop)\n"
        "tfgpu: images: 1 with transparency, which is dropped (a.PNG); "
        "1 of several frames, of which the first is taken (b.gif)\n"
    )


def test_a_folder_without_images_is_named_and_the_rest_goes_on(capsys, tmp_path):
    said = predicted(capsys, tmp_path, PATHS[0], code=1)
    assert len(said.out.splitlines()) == 1
    assert "holds no images" in said.err


def test_paths_come_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PATHS[1]}\n\n{PATHS[0]}\r\n"))
    assert [each["path"] for each in objects(capsys, "-")] == [PATHS[1], PATHS[0]]


def test_paths_are_read_no_further_than_needed(monkeypatch):
    def endless():
        yield "one\n"
        yield "two\n"
        raise AssertionError("read too far")

    monkeypatch.setattr(sys, "stdin", endless())
    found = find_images(["-"])
    assert [next(found), next(found)] == ["one", "two"]


def test_a_name_with_a_comma_or_quotes_stays_one_cell(capsys, tmp_path, place):
    odd = tmp_path / 'a, "b".png'
    odd.write_bytes((place / PATHS[0]).read_bytes())
    rows = list(csv.reader(io.StringIO(predicted(capsys, odd, "--format=csv").out)))
    assert rows[1][0] == str(odd)


@pytest.mark.parametrize(
    ("argv", "said"), [([], "nothing to predict"), (["empty"], "holds no images")]
)
def test_an_empty_list_is_refused(capsys, place, argv, said):
    (place / "empty").mkdir(exist_ok=True)
    code, line = refusal(capsys, predict.main, "--run_dir=run", "--devices=CPU:0", *argv)
    assert code == 2
    assert said in line


def test_empty_standard_input_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    code, line = refusal(capsys, predict.main, "--run_dir=run", "--devices=CPU:0", "-")
    assert code == 2
    assert "standard input named none" in line


def test_a_run_without_a_model_is_refused(capsys, tmp_path):
    run = write_run(tmp_path / "run")
    code, line = refusal(capsys, predict.main, f"--run_dir={run}", PATHS[0])
    assert code == 4
    assert "model.keras" in line


def test_a_model_that_brings_code_is_refused(capsys, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Lambda(lambda images: images)(inputs)
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    run = write_run(tmp_path / "run", keras.Model(inputs, outputs))
    code, line = refusal(capsys, predict.main, f"--run_dir={run}", "--devices=CPU:0", PATHS[0])
    assert code == 4
    assert "Lambda" in line


def test_workers_give_no_two_images_one_name():
    class Named(ImagePredictor):
        writes_files = True

    def named(rank, members):
        predictor = Named(SimpleNamespace(image_shape=(8, 8, 3)), None)
        found = predictor.find(paths) if members.is_chief else iter(())
        batches = iter(lambda: list(itertools.islice(found, 1)), [])

        def label(batch):
            lines = [f"{item} {predictor.name_of(item)}" for item in batch]
            return run._Labelled(len(batch), [], "", lines, [])

        return [
            line for each in run._in_turn(members, predictor, batches, label) for line in each.lines
        ]

    paths = ["a/x.png", "b/x.png", "c/X.png", "d/y.png", "a/x.png"]
    alone = named(0, membership.alone())
    assert alone == ["a/x.png x", "b/x.png x-2", "c/X.png X-3", "d/y.png y", "a/x.png x"]
    with threads_as_workers.joined(2) as members:
        assert threads_as_workers.each(2, lambda rank: named(rank, members[rank]))[0] == alone
