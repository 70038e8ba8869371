"""WAV files: every encoding that is read against NumPy, and what is wrong with others."""

import numpy as np
import pytest
from scipy.io import wavfile
from sounded import wav

from tfgpu.data.file_tree import Remarks
from tfgpu.data.wav import read_header, read_wav, resample
from tfgpu.errors import DataError

RANDOM = np.random.RandomState(0)
SAMPLES = RANDOM.randint(-(2**15), 2**15, 101).astype(np.int16)


def written(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    return str(path)


def packed24(values):
    return values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        pytest.param(wav(SAMPLES), 0, id="16"),
        pytest.param(wav((SAMPLES // 256 + 128).astype(np.uint8), bits=8), 255, id="8"),
        pytest.param(wav(packed24(SAMPLES.astype(np.int64) * 256), bits=24), 0, id="24"),
        pytest.param(wav(SAMPLES.astype(np.int32) * 65536, bits=32), 0, id="32"),
        pytest.param(wav((SAMPLES / 2**15).astype(np.float32), bits=32, tag=3), 0, id="float"),
        pytest.param(wav(SAMPLES / 2**15, bits=64, tag=3), 0, id="double"),
        pytest.param(wav(SAMPLES, extra=b"LIST\x03\0\0\0abc\0"), 0, id="other part"),
        pytest.param(wav(SAMPLES, declared=0xFFFFFFFF), 0, id="unknown size"),
    ],
)
def test_every_encoding_gives_the_samples(tmp_path, content, tolerance):
    path = written(tmp_path, content)
    found = read_wav(path, 4000)
    assert found.dtype == np.int16 and read_header(path).samples == len(SAMPLES)
    np.testing.assert_allclose(found.astype(int), SAMPLES.astype(int), atol=tolerance)


@pytest.mark.parametrize("peak", [1.5, 3000.0])
def test_floats_beyond_full_scale_are_brought_down_as_a_whole(tmp_path, peak):
    remarks = Remarks()
    content = wav((SAMPLES / 2**15 * peak).astype(np.float32), bits=32, tag=3)
    found = read_wav(written(tmp_path, content), 4000, remarks=remarks)
    shape = SAMPLES * (2**15 / np.abs(SAMPLES.astype(int)).max())
    np.testing.assert_allclose(found, shape, atol=1.5)
    assert str(remarks) == "1 louder than full scale, divided by its peak (a.wav)"


def test_what_scipy_writes_is_read(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, np.stack([SAMPLES / 2**15] * 2, axis=1))
    np.testing.assert_array_equal(read_wav(str(tmp_path / "a.wav"), 8000), SAMPLES)


def test_channels_are_mixed_down_to_their_mean(tmp_path):
    both = np.array([[100, 300], [-20, 10], [32767, 32767]], np.int16)
    path = written(tmp_path, wav(both, channels=2))
    np.testing.assert_array_equal(read_wav(path, 4000), [200, -5, 32767])


def test_another_rate_is_resampled(tmp_path):
    def sine(rate):
        return 9000 * np.sin(2 * np.pi * 300 * np.arange(rate // 2) / rate)

    path = written(tmp_path, wav(np.round(sine(8000)).astype(np.int16), rate=8000))
    found = read_wav(path, 4000)
    assert len(found) == 2000
    np.testing.assert_allclose(found[50:-50], sine(4000)[50:-50], atol=20)


def test_resampling_cuts_to_the_range():
    square = np.repeat([2**15 - 1, -(2**15)] * 20, 8).astype(np.int16)
    assert resample(square, 4000, 6000).dtype == np.int16
    assert np.abs(resample(square, 4000, 6000).astype(int)).max() == 2**15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ID3 no sound", "is no WAV file"),
        (b"", "is no WAV file"),
        (wav(SAMPLES, declared=400), "is cut off: 202 of 400 bytes"),
        (wav(SAMPLES, tag=7, bits=8), "is encoded as mu-law, which is not read here"),
        (wav(SAMPLES, tag=85), "is encoded as MP3"),
        (wav(SAMPLES, tag=0x1234), "is encoded as format 0x1234"),
        (wav(SAMPLES, bits=12), "is encoded as PCM of 12 bits"),
        (wav(SAMPLES, channels=0), "has a damaged header|damaged"),
        (wav(SAMPLES)[:30], "damaged header"),
        (wav(SAMPLES, rate=2_000_000_011), "2,000,000,011 samples a second"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=f"a.wav.*{message}"):
        read_header(written(tmp_path, content))


def test_nothing_and_what_is_not_finite_are_refused(tmp_path):
    path = written(tmp_path, wav(b""))
    assert read_header(path).samples == 0
    with pytest.raises(DataError, match="has a length of zero"):
        read_wav(path, 4000)
    path = written(tmp_path, wav(np.array([0, np.nan], np.float32), tag=3, bits=32))
    with pytest.raises(DataError, match="samples that are not finite"):
        read_wav(path, 4000)


@pytest.mark.parametrize("size", ["right", "unknown"])
def test_a_recording_of_nothing_with_a_title_behind_is_empty(tmp_path, size):
    content = wav(b"") + b"LIST\x0c\0\0\0INFOINAM\0\0\0\0"
    told = len(content) - 8 if size == "right" else 0
    path = written(tmp_path, content[:4] + told.to_bytes(4, "little") + content[8:])
    assert read_header(path).samples == 0


def test_samples_of_a_program_that_wrote_no_size_are_read(tmp_path):
    content = wav(SAMPLES, declared=0)
    path = written(tmp_path, content[:4] + bytes(4) + content[8:])
    np.testing.assert_array_equal(read_wav(path, 4000), SAMPLES)


def test_a_rate_that_would_stretch_a_file_beyond_measure_is_refused(tmp_path):
    with pytest.raises(DataError, match="a.wav says that it has 1 samples a second"):
        read_wav(written(tmp_path, wav(SAMPLES, rate=1)), 16000)
