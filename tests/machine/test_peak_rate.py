"""The measured peak and the file that keeps it."""

import json

import pytest

from tfgpu.machine import peak_rate


@pytest.fixture
def measured(monkeypatch, tensorflow):
    """Counts measurements, which take no time."""
    made = []
    monkeypatch.setattr(peak_rate, "_measure", lambda *what: made.append(what) or 2e9)
    return made


def test_a_real_measurement_is_positive(tmp_path, tensorflow):
    assert peak_rate.peak_flops("CPU:0", cache=tmp_path / "peak.json") > 1e6


def test_it_is_measured_once_for_each_dtype(tmp_path, measured):
    cache = tmp_path / "new" / "peak.json"
    for dtype in ("float32", "float32", "bfloat16", "float32"):
        assert peak_rate.peak_flops("CPU:0", dtype=dtype, cache=cache) == 2e9
    assert measured == [("CPU:0", "float32"), ("CPU:0", "bfloat16")]
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": [1]}', "\x00"])
def test_a_damaged_file_is_measured_again(tmp_path, measured, content):
    cache = tmp_path / "peak.json"
    cache.write_text(content)
    assert peak_rate.peak_flops("CPU:0", cache=cache) == 2e9
    assert peak_rate.peak_flops("CPU:0", cache=cache) == 2e9
    assert len(measured) == 1


def test_a_home_that_cannot_be_written_does_no_harm(tmp_path, measured):
    (tmp_path / "file").write_text("")
    assert peak_rate.peak_flops("CPU:0", cache=tmp_path / "file" / "peak.json") == 2e9


def test_a_user_without_a_home_measures_it_each_time(measured, monkeypatch):
    monkeypatch.setattr(peak_rate.user_cache, "directory", lambda: None)
    assert peak_rate.peak_flops("CPU:0") == peak_rate.peak_flops("CPU:0") == 2e9
    assert len(measured) == 2


def test_it_is_kept_under_the_users_cache_directory(tmp_path, measured, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peak_rate.peak_flops("CPU:0")
    assert (tmp_path / "tfgpu" / "peak.json").is_file()
