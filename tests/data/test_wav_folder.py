"""Folders of WAV files: classes, rates, channels, and files that hold nothing."""

import os
import unicodedata

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


@pytest.mark.parametrize("split", ["train", "test"])
def test_floats_are_looked_at_before_the_training(tmp_path, split):
    """Those of the test were found to be no numbers once all was trained."""
    write(tmp_path / "train", 3)
    write(tmp_path / "test", 2)
    path = tmp_path / split / "low" / "floats.wav"
    samples = tone(RANDOM, 300).astype(np.float32)
    path.write_bytes(wav(samples, tag=3, bits=32))
    (said,) = open_folder(str(tmp_path)).notes
    assert said.endswith("of 11, 1 goes beyond full scale, and is divided by its greatest sample")
    samples[7] = np.nan
    path.write_bytes(wav(samples, tag=3, bits=32))
    with pytest.raises(DataError, match="floats.wav has samples that are not finite"):
        open_folder(str(tmp_path))


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
    with pytest.raises(DataError, match="c holds one class only, 'high'"):
        open_folder(str(tmp_path / "c"))
    for name in "xy":
        (tmp_path / "b" / name).mkdir(parents=True)
        (tmp_path / "b" / name / "a.wav").write_bytes(wav(b""))
    with pytest.raises(DataError, match="no WAV file of the train split has a sample"):
        open_folder(str(tmp_path / "b"))


# ---- what systems leave, links and names, as of images ---------------------------------------


def recorded(source, split="train"):
    """The samples and the class of each recording, as bytes."""
    records = source.split(split, "label")
    some = [(one(records, i), int(one(records, i, "label"))) for i in range(records.num_examples)]
    return sorted((audio.tobytes(), label) for audio, label in some)


def test_what_systems_leave_is_no_recording_and_is_named(tmp_path):
    own = recorded(open_folder(str(write(tmp_path / "a", 2))))
    place = tmp_path / "a" / "low"
    for name in ("._00.wav", ".Trash-0/01.wav", "@eaDir/00.wav", "__MACOSX/00.wav"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"what a system knows of a file")
    (place / ".thumbnails").mkdir()  # Pictures that are nobody's do not make it a set of images.
    (place / ".thumbnails" / "00.png").write_bytes(b"x")
    (place / "notes.txt").write_bytes(b"x")
    (tmp_path / "a" / "$RECYCLE.BIN").mkdir()
    (tmp_path / "a" / "stray.wav").write_bytes(wav(tone(RANDOM, 300)))
    source = open_folder(str(tmp_path / "a"))
    assert recorded(source) == own
    (note,) = source.notes
    assert note == (
        "left out: 6 hidden or of a system ($RECYCLE.BIN, low/.Trash-0, low/._00.wav, ...); "
        "1 in no folder of a class (stray.wav); 1 of other kinds (.txt)"
    )


def test_a_class_of_leftovers_alone_says_what_it_holds(tmp_path):
    write(tmp_path / "a", 2)
    (tmp_path / "a" / "none").mkdir()
    (tmp_path / "a" / "none" / "00.flac").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none holds no WAV files .*; left out: 1 of other kinds"):
        open_folder(str(tmp_path / "a"))


def test_links_are_followed_once_and_give_no_copies(tmp_path):
    own = recorded(open_folder(str(write(tmp_path / "a", 2))))
    place = tmp_path / "a" / "low"
    (place / "again").symlink_to(place)
    (place / "copy.wav").symlink_to("00.wav")
    (place / "gone.wav").symlink_to("nowhere.wav")
    (tmp_path / "pool").mkdir()
    samples = tone(RANDOM, 300)
    (tmp_path / "pool" / "deep.wav").write_bytes(wav(samples))
    (place / "more").symlink_to(tmp_path / "pool")
    source = open_folder(str(tmp_path / "a"))
    assert recorded(source) == sorted([*own, (samples.tobytes(), 1)])
    (note,) = source.notes
    assert "2 a second time, by a link (low/again, low/copy.wav)" in note
    assert "1 a link that leads nowhere (low/gone.wav)" in note


def test_a_recording_of_two_classes_is_refused(tmp_path):
    write(tmp_path / "a", 2)
    (tmp_path / "a" / "low" / "9.wav").symlink_to(tmp_path / "a" / "high" / "00.wav")
    with pytest.raises(DataError, match=r"low/9\.wav leads to high/00\.wav .* another class"):
        open_folder(str(tmp_path / "a"))


def test_recordings_of_train_that_are_linked_into_test_are_counted(tmp_path):
    write(tmp_path / "train", 2)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    (note,) = open_folder(str(tmp_path)).notes
    assert note.startswith("test: 4 of 4 files are those of train, by links")


@pytest.mark.skipif(os.name == "nt", reason="names are not bytes")
def test_names_of_any_bytes_and_case_are_read(tmp_path):
    own = recorded(open_folder(str(write(tmp_path / "a", 2))))
    place = os.fsencode(tmp_path / "a" / "low")
    samples = tone(RANDOM, 300)
    for name in (b"caf\xe9.wav", b"new\nline.WAV", b"two.Wave"):
        with open(os.path.join(place, name), "wb") as file:
            file.write(wav(samples))
    assert recorded(open_folder(str(tmp_path / "a"))) == sorted(
        [*own, *[(samples.tobytes(), 1)] * 3]
    )
    with open(os.path.join(place, b"\xe9.wav"), "wb") as file:
        file.write(b"no sound at all")
    with pytest.raises(DataError, match=r"^\$'.*low/\\xe9\.wav' is no WAV file"):
        open_folder(str(tmp_path / "a"))


def test_a_class_is_one_whatever_its_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    if (tmp_path / composed).mkdir() or (tmp_path / decomposed).exists():
        pytest.skip("this disk knows one form alone")
    (tmp_path / composed).rmdir()
    write(tmp_path / "train", 1)
    write(tmp_path / "test", 1, seed=1)
    (tmp_path / "train" / "high").rename(tmp_path / "train" / composed)
    (tmp_path / "test" / "high").rename(tmp_path / "test" / decomposed)
    source = open_folder(str(tmp_path))
    assert source.schema.features["label"].class_names == (composed, "low")
    assert [label for _, label in recorded(source, "test")].count(0) == 1
