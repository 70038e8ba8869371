"""The index of TFRecord files, and what it says of damaged ones."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data import tfrecord_index
from tfgpu.data.tfrecord_index import TFRecordFiles, index_records
from tfgpu.errors import DataError


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


RECORDS = [bytes([i]) * (i * 37 % 101) for i in range(200)]


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "some.tfrecord", RECORDS)
    return tmp_path / "some.tfrecord"


def test_finds_the_records_that_tensorflow_reads(path):
    data = path.read_bytes()
    found = [data[offset : offset + length] for offset, length in index_records(str(path))]
    assert found == list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def test_reads_several_files_in_any_order(tmp_path):
    paths = [
        write(tmp_path / "0", RECORDS[:50]),
        write(tmp_path / "1", []),
        write(tmp_path / "2", RECORDS[50:]),
    ]
    files = TFRecordFiles(paths, shard_lengths=[50, 0, 150])
    order = np.random.RandomState(0).permutation(200)
    assert len(files) == 200
    assert files.read(order).tolist() == [RECORDS[i] for i in order]


def test_reads_more_files_than_it_keeps_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord_index, "_MAX_OPEN_FILES", 2)
    paths = [write(tmp_path / str(i), [RECORDS[i]]) for i in range(20)]
    files = TFRecordFiles(paths)
    assert files.read(np.arange(20)[::-1]).tolist() == RECORDS[:20][::-1]
    assert len(files._open) == 2


@pytest.mark.parametrize("cut", [1, 4, 5, 20, 116, 119])
def test_a_truncated_file_is_named(path, cut):
    # The last record holds 90 bytes, so its header starts 106 before the end.
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    with pytest.raises(DataError, match="some.tfrecord is truncated"):
        index_records(str(path))


def test_a_file_cut_between_records_is_named(path):
    last = len(RECORDS[-1]) + 16
    data = path.read_bytes()
    path.write_bytes(data[:-last])
    with pytest.raises(DataError, match="some.tfrecord is truncated .* 199 records instead of 200"):
        TFRecordFiles([str(path)], shard_lengths=[200])


def test_another_kind_of_file_is_named(tmp_path):
    path = tmp_path / "page.tfrecord"
    path.write_text("<html>not found, sorry for that</html>")
    with pytest.raises(DataError, match="page.tfrecord is damaged"):
        index_records(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.tfrecord cannot be read"):
        index_records(str(tmp_path / "none.tfrecord"))


def test_a_changed_byte_is_found_and_its_record_named(path):
    offset, _ = index_records(str(path))[7]
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    files = TFRecordFiles([str(path)])
    assert files.read(np.array([6])).tolist() == [RECORDS[6]]
    with pytest.raises(DataError, match="some.tfrecord is damaged: record 7 "):
        files.read(np.array([6, 7]))


def test_a_file_cut_while_in_use_is_named(path):
    files = TFRecordFiles([str(path)])
    os.truncate(path, 100)
    with pytest.raises(DataError, match="some.tfrecord was cut short"):
        files.read(np.array([199]))
