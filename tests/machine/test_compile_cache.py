"""Where XLA's programs are kept between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfgpu.errors import RequestError
from tfgpu.machine import compile_cache
from tfgpu.machine.driver import Driver, Gpu

GPU = Gpu(index=0, name="NVIDIA X", uuid="GPU-1", capability=(9, 0), total=None, free=None)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets the GPUs that there are; the user's cache directory is a temporary one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)

    def having(*gpus, version="580.1"):
        # What `keep` sets is taken back with what is set here.
        monkeypatch.setenv("TF_XLA_FLAGS", "")
        found = Driver(version=version, gpus=gpus)
        monkeypatch.setattr(compile_cache.driver, "ask", lambda: found)

    return having


def keep(setting="auto", deterministic=False):
    return compile_cache.keep(setting, deterministic=deterministic)


def test_nothing_is_kept_without_a_gpu_unless_a_folder_is_named(machine, tmp_path):
    machine()
    assert keep() is None
    assert os.environ["TF_XLA_FLAGS"] == ""
    assert keep(str(tmp_path / "mine")).parent == tmp_path / "mine"


def test_with_a_gpu_it_is_the_users_cache_directory(machine, tmp_path):
    machine(GPU)
    folder = keep()
    assert folder.parent == tmp_path / "cache/tfgpu/xla"
    assert os.environ["TF_XLA_FLAGS"] == f"--tf_xla_persistent_cache_directory={folder}"


def test_none_keeps_nothing(machine):
    machine(GPU)
    assert keep("none") is None


def test_what_the_user_has_set_stays(machine, monkeypatch):
    machine(GPU)
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory=/mine")
    assert keep() is None
    assert os.environ["TF_XLA_FLAGS"] == "--tf_xla_persistent_cache_directory=/mine"
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_clustering_debug")
    folder = keep()
    assert os.environ["TF_XLA_FLAGS"].split() == [
        "--tf_xla_clustering_debug",
        f"--tf_xla_persistent_cache_directory={folder}",
    ]


def test_what_decides_a_program_decides_the_folder(machine, monkeypatch):
    folders = []
    for gpus, version, deterministic, flags in (
        ((GPU,), "580.1", False, ""),
        ((GPU,), "580.1", True, ""),
        ((GPU,), "590.1", False, ""),
        ((GPU, GPU), "580.1", False, ""),
        ((GPU,), "580.1", False, "--xla_gpu_autotune_level=0"),
    ):
        machine(*gpus, version=version)
        monkeypatch.setenv("XLA_FLAGS", flags)
        folders.append(keep(deterministic=deterministic))
        machine(*gpus, version=version)
        assert keep(deterministic=deterministic) == folders[-1]
    assert len(set(folders)) == len(folders)


def test_a_folder_that_cannot_be_written_is_refused_and_the_default_is_left_out(machine, tmp_path):
    machine(GPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--compile_cache=.*file/x.*--compile_cache=none"):
        keep(str(tmp_path / "file/x"))
    (tmp_path / "cache").write_text("")
    assert keep() is None


def test_the_oldest_programs_make_room(machine, monkeypatch, tmp_path):
    machine(GPU)
    folder = keep()
    for age in range(4):
        program = folder / f"xla_compile_cache__{age}.pb"
        program.write_bytes(bytes(10))
        os.utime(program, (1000 - age, 1000 - age))
    other = folder / "not_a_program"
    other.write_bytes(bytes(100))
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 20)
    machine(GPU)
    keep()
    assert sorted(path.name for path in folder.iterdir()) == [
        "not_a_program",
        "xla_compile_cache__0.pb",
        "xla_compile_cache__1.pb",
    ]


@pytest.mark.slow
def test_the_next_process_finds_the_programs(tmp_path):
    script = (
        "from tfgpu.machine import compile_cache; from tfgpu.cli import startup;"
        f"compile_cache.keep({str(tmp_path)!r}, deterministic=False);"
        "startup.prepare_environment(); tf = startup.import_tensorflow();"
        "print(float(tf.function(lambda x: x * 2 + 1, jit_compile=True)(tf.constant(3.0))))"
    )

    def programs():
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["7.0"]
        return {path: path.stat().st_mtime_ns for path in Path(tmp_path).glob("*/*.pb")}

    first = programs()
    assert first
    assert programs() == first


@pytest.mark.parametrize("content", [b"", b"\x0a\x05ab", b"rubbish!", b"\x0b", b"\x0a\xff"])
def test_a_program_that_is_damaged_is_deleted(machine, content):
    machine(GPU)
    folder = keep()
    damaged, whole = (folder / f"xla_compile_cache__{name}.pb" for name in "ab")
    damaged.write_bytes(content)
    whole.write_bytes(b"\x0a\x02ab\x10\x05")  # Field 1 of two bytes, field 2 a number.
    machine(GPU)
    keep()
    assert [path.name for path in folder.iterdir()] == [whole.name]


def test_no_default_where_there_is_no_home_or_a_space_in_its_path(machine, monkeypatch, tmp_path):
    machine(GPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with space"))
    assert keep() is None
    with pytest.raises(RequestError, match="no folder with a space"):
        keep(str(tmp_path / "with space"))
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert keep() is None
