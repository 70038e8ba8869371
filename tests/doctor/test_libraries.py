"""The libraries TensorFlow looks for: opened where they are, named with a remedy where not."""

import _ctypes
import os
import shutil
import subprocess

import pytest

from tfgpu.doctor import libraries

WANTED = libraries.wanted(libraries.read_config(libraries.tensorflow_folder()))
# Any sound library opens; no compiler is needed to make one.
SOUND = getattr(_ctypes, "__file__", None)

pytestmark = pytest.mark.skipif(
    os.name != "posix" or SOUND is None, reason="shared objects are Linux's and those of its like"
)


@pytest.fixture
def folder(tmp_path):
    """A folder with every library that the wheel looks for, and the environment that shows it."""
    for library in WANTED:
        shutil.copy(SOUND, tmp_path / library.soname)
    return tmp_path


def opened(folder):
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    found = libraries.open_all(WANTED, environment=environment)
    assert [outcome.soname for outcome in found] == [library.soname for library in WANTED]
    return {outcome.soname: outcome for outcome in found}


def test_the_names_are_those_of_the_wheels_own_header():
    assert {library.soname for library in WANTED} >= {
        "libcudart.so.12",
        "libcublasLt.so.12",
        "libcusolver.so.11",
        "libcudnn.so.9",
        "libnccl.so.2",
    }


def test_a_newer_wheel_looks_for_newer_names():
    config = {"TF_CUDA_VERSION": "13.0", "TF_CUDART_VERSION": "13", "TF_CUDNN_VERSION": "9"}
    found = {library.soname: library.package for library in libraries.wanted(config)}
    assert found["libcudart.so.13"] == "nvidia-cuda-runtime-cu13"


def test_libraries_that_are_there_open(folder):
    for soname, outcome in opened(folder).items():
        assert outcome.error == ""
        assert outcome.path == str(folder / soname)


@pytest.mark.parametrize(
    ("soname", "package"),
    [("libcudnn.so.9", "nvidia-cudnn-cu12"), ("libcublasLt.so.12", "nvidia-cublas-cu12")],
)
def test_a_hidden_library_is_named_with_the_command_that_brings_it(
    folder, monkeypatch, soname, package
):
    monkeypatch.setattr(libraries, "is_installed", lambda name: False)
    (folder / soname).unlink()
    found = opened(folder)
    assert [outcome.soname for outcome in found.values() if outcome.error] == [soname]
    (library,) = [library for library in WANTED if library.soname == soname]
    command = libraries.remedy(library, found[soname], python="/venv/bin/python")
    assert command.replace("'", "").startswith(f"/venv/bin/python -m pip install {package}")
    assert libraries.requirement(package) != package  # A bound stands behind it.
    # As pip would read it.
    done = subprocess.run(["sh", "-c", f"printf %s\\\\n {command}"], capture_output=True, text=True)
    assert done.stdout.split()[-1] == libraries.requirement(package)


def test_a_damaged_library_is_told_from_a_missing_one(folder):
    (folder / "libcufft.so.11").write_bytes(b"not a library")
    assert "libcufft.so.11: cannot open" not in opened(folder)["libcufft.so.11"].error


def test_one_that_ends_the_process_does_not_hide_the_others(folder, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "abort.c"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void f(void) { abort(); }"
    )
    library = folder / "libcublas.so.12"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    found = opened(folder)
    assert "SIGABRT" in found["libcublas.so.12"].error
    assert [o.soname for o in found.values() if o.error] == ["libcublas.so.12"]


def test_a_library_whose_own_need_is_missing_is_mended_by_that_ones_package():
    library = next(library for library in WANTED if library.soname.startswith("libcusolver"))
    outcome = libraries.Opened(
        library.soname,
        error="libnvJitLink.so.12: cannot open shared object file: No such file or directory",
    )
    assert "nvidia-nvjitlink-cu12" in libraries.remedy(library, outcome)


def test_an_installed_package_without_its_file_is_installed_again(monkeypatch):
    monkeypatch.setattr(libraries, "is_installed", lambda name: True)
    monkeypatch.setattr(libraries.importlib.metadata, "version", lambda name: "9.28.0.1")
    outcome = libraries.Opened("libcudnn.so.9", error="libcudnn.so.9: cannot open")
    library = next(library for library in WANTED if library.soname == "libcudnn.so.9")
    assert libraries.remedy(library, outcome, python="python") == (
        "python -m pip install --force-reinstall --no-deps nvidia-cudnn-cu12==9.28.0.1"
    )


def test_xla_finds_libdevice_where_it_is_told(tmp_path):
    assert libraries.compiler_folder(tmp_path / "tensorflow", {"CUDA_HOME": str(tmp_path)}) in (
        None,
        "/usr/local/cuda",  # Where a toolkit is installed on the machine.
    )
    directory = tmp_path / "nvidia/cuda_nvcc/nvvm/libdevice"
    directory.mkdir(parents=True)
    (directory / "libdevice.10.bc").touch()
    assert libraries.compiler_folder(tmp_path / "tensorflow", {}) == str(
        tmp_path / "nvidia/cuda_nvcc"
    )
