"""Folders of WAV files: classes, rates, channels, and files that hold nothing."""

import numpy as np
import pytest
import tensorflow as tf
from sounded import PITCHES, tone, wav, write

from tfgpu.data.folder import open_folder
from tfgpu.errors import DataError

RANDOM = np.random.RandomState(0)


def one(records, position, name="audio"):
    decode = records.select((name,))
    positions = tf.data.Dataset.from_tensors(np.array([position]))
    found = positions.map(lambda of: decode(*(part[0] for part in records.read(of)))[name])
    return next(iter(found)).numpy()


def test_the_folders_are_classes_and_the_files_recordings(tmp_path):
    source = open_folder(str(write(tmp_path / "a", 3)))
    audio = source.schema.features["audio"]
    assert (audio.kind, audio.sample_rate, audio.shape) == ("audio", 4000, (None,))
    assert source.schema.features["label"].class_names == tuple(sorted(PITCHES))
    records = source.split("train", "label")
    assert records.num_examples == 6 and source.split("test", "label") is None
    assert [int(one(records, i, "label")) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    content = (tmp_path / "a" / "low" / "01.wav").read_bytes()
    np.testing.assert_array_equal(one(records, 4), np.frombuffer(content[44:], np.int16))
    assert source.notes == ()


def test_what_is_unusual_is_said(tmp_path):
    write(tmp_path / "train", 3)
    write(tmp_path / "test", 2)
    place = tmp_path / "train" / "low"
    (place / "fast.wav").write_bytes(wav(tone(RANDOM, 300, rate=8000), rate=8000))
    both = np.stack([tone(RANDOM, 300)] * 2, axis=1)
    (place / "stereo.wav").write_bytes(wav(both, channels=2))
    (place / "none.wav").write_bytes(wav(b""))
    source = open_folder(str(tmp_path))
    nothing, rates, channels = source.notes
    assert nothing.startswith("WAV files: of 13, 1 has a length of zero and is left out")
    assert str(place / "none.wav") in nothing
    assert "1 of 8000 Hz is resampled to 4000 Hz" in rates
    assert "1 has several channels, which are mixed down" in channels
    records = source.split("train", "label")
    assert records.num_examples == 8 and source.split("test", "label").num_examples == 4
    assert {len(one(records, i)) for i in (6, 7)} == {1600}


def test_a_file_that_is_no_wav_file_is_named(tmp_path):
    write(tmp_path / "a", 2)
    (tmp_path / "a" / "low" / "bad.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match="bad.wav is no WAV file"):
        open_folder(str(tmp_path / "a"))


def test_a_class_without_a_file_and_a_split_without_a_sample_are_named(tmp_path):
    write(tmp_path / "a", 2)
    (tmp_path / "a" / "none").mkdir()
    with pytest.raises(DataError, match="none holds no WAV files"):
        open_folder(str(tmp_path / "a"))
    write(tmp_path / "c", 1)
    (tmp_path / "c" / "low" / "00.wav").rename(tmp_path / "c" / "high" / "01.wav")
    (tmp_path / "c" / "low").rmdir()
    with pytest.raises(DataError, match="holds 1 folder of a class, 'high': WAV files belong in"):
        open_folder(str(tmp_path / "c"))
    for name in "xy":
        (tmp_path / "b" / name).mkdir(parents=True)
        (tmp_path / "b" / name / "a.wav").write_bytes(wav(b""))
    with pytest.raises(DataError, match="no WAV file of the train split has a sample"):
        open_folder(str(tmp_path / "b"))
