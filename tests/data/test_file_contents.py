"""Fingerprints of files: what is told apart, and what is the same."""

import pytest

from tfgpu.data.file_contents import fingerprints
from tfgpu.errors import DataError


@pytest.mark.parametrize("size", [10, 8192, 100_000])
def test_another_file_of_the_same_size_is_another(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    before = fingerprints([str(path)], str(tmp_path))
    assert before == fingerprints([str(path)], str(tmp_path)) and before[0][:2] == ("a", size)
    for place in (size // 2, size - 1):
        path.write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
        assert fingerprints([str(path)], str(tmp_path)) != before


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="a cannot be read"):
        fingerprints([str(tmp_path / "a")], str(tmp_path))
