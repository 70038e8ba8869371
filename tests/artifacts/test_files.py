"""What the writers of files share."""

import json
import os
import sys

import numpy as np
import pytest

from tfgpu.artifacts import files
from tfgpu.errors import RequestError


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with files.replacing(path) as beside:
        assert beside.suffix == ".txt"
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ValueError), files.replacing(path) as beside:
        beside.write_text("half")
        raise ValueError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "none" / "file.txt"
    with pytest.raises(OSError) as failure, files.replacing(path) as beside:
        beside.write_text("new")
    assert failure.value.filename == str(path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "file.txt"
    target.write_text("old") if exists else None
    link.symlink_to(target)
    with files.replacing(link) as beside:
        assert beside.suffix == ".txt"
        beside.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert list((tmp_path / "there").iterdir()) == [target]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_stays(tmp_path, linked):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with (
        pytest.raises(RequestError, match="is a pipe and no regular file; name another file"),
        files.replacing(link if linked else pipe) as beside,
    ):
        beside.write_text("new")
    assert pipe.is_fifo() and sorted(tmp_path.iterdir()) == [link, pipe]


def test_a_directory_is_made_with_its_parents(tmp_path):
    files.make_directory(tmp_path / "a" / "b", flag="out")
    files.make_directory(tmp_path / "a" / "b", flag="out")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_wrong_request(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--out=.*file.*cannot be written .*name another"):
        files.make_directory(tmp_path / "file" / "a", flag="out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", "digits"),
        ("folder:/data/my cats/", "my-cats"),
        ("a/b:1.0.0", "1.0.0"),
        ("", "run"),
    ],
)
def test_a_name_becomes_one_of_a_file(name, expected):
    assert files.file_name(name) == expected


@pytest.fixture
def flushed(monkeypatch):
    """The inodes that have been flushed to the disk, in order."""
    inodes, fsync = [], os.fsync

    def record(descriptor):
        inodes.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return inodes


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be flushed there")
def test_a_replaced_file_is_flushed_before_its_name_is(tmp_path, flushed):
    with files.replacing(tmp_path / "file.txt") as beside:
        beside.write_text("new")
    assert flushed == [(tmp_path / "file.txt").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be flushed there")
def test_the_names_of_new_directories_are_flushed(tmp_path, flushed):
    files.make_durable(tmp_path / "a" / "b")
    assert flushed == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]


def test_what_numpy_holds_is_written_as_json_has_it(tmp_path):
    value = {"mean": np.float32(0.5), "table": np.arange(4).reshape(2, 2), "one": np.array(3)}
    files.write_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == {"mean": 0.5, "table": [[0, 1], [2, 3]], "one": 3}
