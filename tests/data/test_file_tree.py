"""What systems leave in folders of images, links, and names that are no text."""

import os
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfgpu.data.file_tree import FileTree
from tfgpu.data.folder import open_folder
from tfgpu.data.image_files import read_image
from tfgpu.errors import DataError, shown
from tfgpu.tasks import loading

# On disks that refuse such names (macOS, Windows) there are none to be read.
needs_bytes = pytest.mark.skipif(os.name == "nt", reason="names are not bytes")


def save(path, value=0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path, "PNG")
    return path


def load(path):
    return loading.load(
        f"folder:{path}", data_dir=None, validation_fraction=0.0, image_size=None, seed=0
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images, each of one colour of its own."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            save(tmp_path / name / f"{i}.png", 10 * i + 100 * label)
    return tmp_path


def colours(source):
    """(colour, label) of every example of the training split."""
    records = source.split("train")
    paths, labels = records.read(tf.range(records.num_examples, dtype=tf.int64))
    images = [read_image(os.fsdecode(path), channels=3) for path in paths.numpy()]
    return sorted(zip((image[0, 0, 0] for image in images), labels.numpy(), strict=True))


OWN = [(10 * i + 100 * label, label) for label in (0, 1) for i in range(4)]


def test_what_systems_leave_is_no_image_and_is_named(folder):
    for left in (
        ".ipynb_checkpoints/0-checkpoint.png",
        ".Trash-0/files/1.png",
        "__MACOSX/cat/1.png",
        "$RECYCLE.BIN/1.png",
        "@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
        "System Volume Information/1.png",
        "._1.png",
    ):
        save(folder / "cat" / left, 77)
    source = open_folder(str(folder))
    assert colours(source) == OWN
    assert source.notes == (
        "left out: 7 hidden or of a system (cat/$RECYCLE.BIN, cat/.Trash-0, cat/._1.png, ...)",
    )


def test_a_system_folder_beside_the_classes_is_no_class(folder):
    save(folder / "__MACOSX" / "cat" / "1.png")
    source = open_folder(str(folder))
    assert source.schema.features["label"].class_names == ("cat", "dog")
    assert source.notes == ("left out: 1 hidden or of a system (__MACOSX)",)


def test_other_files_are_counted_in_one_line(folder):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "1.txt", "2.txt", "3.nef"):
        (folder / "dog" / name).write_bytes(b"x")
    save(folder / "stray.png")
    (note,) = open_folder(str(folder)).notes
    assert note == (
        "left out: 1 in no folder of a class (stray.png); 3 hidden or of a system "
        "(dog/.DS_Store, dog/Thumbs.db, dog/desktop.ini); 3 of other kinds (.txt, .nef, ...)"
    )


def test_a_class_of_leftovers_alone_says_what_it_holds(folder):
    (folder / "eel").mkdir()
    (folder / "eel" / "raw.nef").write_bytes(b"x")
    with pytest.raises(DataError, match=r"eel holds no images .*; left out: 1 of other kinds \(.n"):
        open_folder(str(folder))


# ---- links ---------------------------------------------------------------------------------


def test_a_linked_folder_elsewhere_is_followed_once(folder, tmp_path_factory):
    pool = tmp_path_factory.mktemp("pool")
    save(pool / "deep" / "x.png", 200)
    (folder / "dog" / "more").symlink_to(pool)
    (folder / "dog" / "again").symlink_to(pool)
    source = open_folder(str(folder))
    assert colours(source) == sorted([*OWN, (200, 1)])
    assert source.notes == ("left out: 1 a second time, by a link (dog/more)",)


def test_links_into_what_is_there_already_give_no_copies(folder):
    (folder / "cat" / "all").symlink_to(folder / "cat")  # A loop.
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "9.png").symlink_to("0.png")
    os.link(folder / "cat" / "1.png", folder / "cat" / "8.png")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    (folder / "cat" / "ring.png").symlink_to("ring.png")
    source = open_folder(str(folder))
    assert colours(source) == OWN
    (note,) = source.notes
    assert "4 a second time, by a link" in note
    assert "2 a link that leads nowhere (cat/gone.png, cat/ring.png)" in note


def test_linked_files_of_a_pool_are_images(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            # As DVC, git-annex and hubs of data sets store them: by digest, without an extension.
            blob = save(tmp_path / "pool" / f"{label}{i}", 10 * i + 100 * label)
            (tmp_path / "set" / name / f"{i}.png").symlink_to(blob)
    source = open_folder(str(tmp_path / "set"))
    assert colours(source) == OWN
    assert source.notes == ()


def test_one_file_in_two_classes_is_refused(folder):
    (folder / "dog" / "9.png").symlink_to(folder / "cat" / "0.png")
    with pytest.raises(DataError, match=r"dog/9\.png leads to cat/0\.png .* another class"):
        open_folder(str(folder))


def test_one_folder_for_two_classes_is_refused(folder):
    (folder / "wolf").symlink_to(folder / "dog")
    with pytest.raises(DataError, match=r"wolf leads to .*dog in .* another class"):
        open_folder(str(folder))


def test_a_test_split_that_is_a_link_to_train_is_counted(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for split in ("train", "test"):
        (root / split).symlink_to(folder)
    (note,) = open_folder(str(root)).notes
    assert note.startswith("test: 8 of 8 files are those of train")


def test_files_of_train_that_are_linked_into_test_are_counted(tmp_path):
    for name in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / "train" / name / f"{i}.png")
        (tmp_path / "test" / name).mkdir(parents=True)
    (tmp_path / "test" / "cat" / "7.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    save(tmp_path / "test" / "dog" / "7.png")
    source = open_folder(str(tmp_path))
    assert source.split("test").num_examples == 2
    assert source.notes == (
        "test: 1 of 2 files are those of train, by links (7.png, ...): figures on them say little",
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    source = open_folder(str(folder))
    assert colours(source) == OWN
    assert source.notes == ("left out: 1 no file that can be read (cat/pipe.png)",)


# ---- names ---------------------------------------------------------------------------------


@needs_bytes
def test_names_of_any_bytes_are_read(folder):
    for i, name in enumerate((b"caf\xe9.png", b"caf\xe8.png", b"new\nline.png", b"tab\t.png")):
        save(os.path.join(os.fsencode(folder), b"dog", name), 200 + i)
    source = open_folder(str(folder))
    assert colours(source) == sorted([*OWN, *((200 + i, 1) for i in range(4))])
    assert source.notes == ()
    data = load(folder)  # As a training reads them, inside a graph.
    found = [part.load_arrays()[0][:, 0, 0, 0] for part in (data.train, data.test)]
    assert sorted(np.concatenate(found).tolist()) == sorted(
        [*(colour for colour, _ in OWN), *range(200, 204)]
    )


@needs_bytes
def test_a_broken_file_of_such_a_name_is_named_in_one_line(folder):
    path = os.path.join(os.fsencode(folder), b"dog", b"caf\xe9\n.png")
    with open(path, "wb") as file:
        file.write(b"nothing")
    with pytest.raises(DataError) as caught:
        open_folder(str(folder))
    assert str(caught.value) == f"$'{folder}/dog/caf\\xe9\\n.png' is not an image that can be read"


@needs_bytes
def test_a_class_of_such_a_name_has_one_that_can_be_written(folder):
    save(os.path.join(os.fsencode(folder), b"caf\xe9", b"1.png"), 250)
    source = open_folder(str(folder))
    assert source.schema.features["label"].class_names == ("$'caf\\xe9'", "cat", "dog")
    (note,) = source.notes
    assert note.startswith("classes: 1 with a name that is not UTF-8") and "$'caf\\xe9'" in note


def test_a_class_is_one_whatever_its_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    if (tmp_path / composed).mkdir() or (tmp_path / decomposed).exists():
        pytest.skip("this disk knows one form alone")
    save(tmp_path / "train" / composed / "1.png", 1)
    save(tmp_path / "train" / "tea" / "1.png", 2)
    save(tmp_path / "test" / decomposed / "2.png", 3)
    source = open_folder(str(tmp_path))
    assert source.schema.features["label"].class_names == (composed, "tea")
    (_, labels) = source.split("test").read(tf.constant([0], tf.int64))
    assert labels.numpy().tolist() == [0]


def test_names_that_differ_in_case_or_form_alone_are_read_and_named(folder):
    save(folder / "cat" / "a.png", 201)
    save(folder / "cat" / "A.PNG", 202)
    if len(os.listdir(folder / "cat")) < 6:
        pytest.skip("this disk knows no case")
    for i, form in enumerate(("NFC", "NFD")):
        save(folder / "dog" / unicodedata.normalize(form, "\u00e9.png"), 203 + i)
    source = open_folder(str(folder))
    assert colours(source) == sorted([*OWN, (201, 0), (202, 0), (203, 1), (204, 1)])
    assert source.notes == (
        "images: 2 of a name that differs from another's in case or Unicode form alone "
        "(A.PNG, a.png): are they copies?",
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain name.png", "plain name.png"),
        ("caf\u00e9\u202f.png", "caf\u00e9\u202f.png"),  # macOS writes a narrow space into times.
        ("a\\b'c.png", "a\\b'c.png"),
        ("caf\udce9.png", "$'caf\\xe9.png'"),
        ("it's\n.png", "$'it\\'s\\n.png'"),
        ("$'caf\\xe9.png'", "$'$\\'caf\\\\xe9.png\\''"),
        ("\x1b[31m.png", "$'\\x1b[31m.png'"),
    ],
)
def test_a_name_is_written_as_a_shell_reads_it(name, written):
    assert shown(name) == written


def test_a_tree_reads_no_further_than_needed(folder):
    found = FileTree((".png",), root=str(folder)).find([("", str(folder))])
    next(found)
    (folder / "dog" / "late.png").write_bytes(b"")
    assert any(path.endswith("late.png") for _, path in found)
