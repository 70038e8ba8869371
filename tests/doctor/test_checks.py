"""The checks of the diagnosis, on recorded answers of the driver, TensorFlow and the machine."""

import json
import os
import socket

import pytest

from tfgpu.doctor import data_checks, findings, libraries
from tfgpu.doctor.cluster_checks import check_cluster
from tfgpu.doctor.data_checks import check_folders
from tfgpu.doctor.environment_checks import (
    check_processor,
    check_software,
    installed_versions,
    within,
)
from tfgpu.doctor.framework import Device, Framework
from tfgpu.doctor.gpu_checks import OLDEST_DRIVER, check_gpus, kernels_for
from tfgpu.doctor.libraries import Opened
from tfgpu.doctor.settings import DoctorSettings
from tfgpu.machine.driver import DRIVER_NOT_LOADED, VERSION_MISMATCH, Driver, Gpu

A100 = Gpu(
    index=0,
    name="NVIDIA A100-SXM4-40GB",
    uuid="GPU-a",
    capability=(8, 0),
    total=40 << 30,
    free=39 << 30,
)
NEWER = Gpu(
    index=0,
    name="NVIDIA B200",
    uuid="GPU-b",
    capability=(10, 0),
    total=180 << 30,
    free=179 << 30,
)
K80 = Gpu(index=0, name="Tesla K80", uuid="GPU-k", capability=(3, 7), total=12 << 30, free=12 << 30)
BUILD = {
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"],
    "cuda_version": "12.5.1",
    "cudnn_version": "9",
    "is_cuda_build": True,
}
WANTED = libraries.wanted({})


def driver(*gpus, version="550.54.15", cuda=(12, 4), **more):
    return Driver(version=version, cuda=cuda, gpus=gpus, cards=len(gpus), **more)


def framework(*gpus, stderr="", **more):
    shown = tuple(
        Device(name=f"GPU:{i}", description=gpu.name, capability=gpu.capability)
        for i, gpu in enumerate(gpus)
    )
    return Framework(
        versions={"tensorflow": "2.21.0", "keras": "3.15.1"},
        build=BUILD,
        **{"gpus": shown, "onednn": True, "stderr": stderr} | more,
    )


def all_open(**changed):
    """Every library opened, but those named: `libcudnn="its error"`."""
    versions = {"libcudart": 12090, "libcudnn": 92800}
    return [
        (
            library,
            Opened(
                library.soname,
                path=f"/site/{library.soname}",
                error=changed.get(name := library.soname.partition(".")[0], ""),
                version=versions.get(name),
            ),
        )
        for library in WANTED
    ]


def diagnose(drv, fw, opened=None, *, devices="all", compiler="/cuda", **variables):
    opened = all_open() if opened is None else opened
    return check_gpus(drv, fw, opened, devices=devices, variables=variables, compiler=compiler)


def worst(found):
    """The findings that are not ok, by item."""
    return {finding.item: finding for finding in found if finding.status != "ok"}


def test_a_gpu_that_works_is_ok():
    found = diagnose(driver(A100), framework(A100))
    assert worst(found) == {}
    said = findings.as_text(found)
    for part in ("550.54.15", "12.4", "39.0 of 40.0 GiB", "8.0", "sm_80", "CUDA 12.9", "9.28"):
        assert part in said


@pytest.mark.parametrize(
    ("pin", "inside"), [("==9.3.0.75", True), ("==9.31.0.1", False), ("==8.9.7.29", False)]
)
def test_a_wheel_that_pins_cudnn_runs_with_later_ones_of_its_major_number(monkeypatch, pin, inside):
    monkeypatch.setattr(libraries, "requirement", lambda package: package + pin)
    found = worst(diagnose(driver(A100), framework(A100)))
    assert ("cuDNN" not in found) is inside
    if not inside:
        assert f"nvidia-cudnn-cu12{pin}" in found["cuDNN"].remedy


def test_a_machine_without_nvidia_trains_on_its_processor():
    none = Driver(code=None, error="libnvidia-ml.so.1: cannot open shared object file")
    assert worst(diagnose(none, framework(), ())) == {}


def test_a_card_without_a_driver_is_a_problem():
    none = Driver(code=None, error="libnvidia-ml.so.1: cannot open shared object file", cards=2)
    finding = worst(diagnose(none, framework()))["driver"]
    assert finding.status == "problem"
    assert "2 NVIDIA cards" in finding.value and "--gpus all" in finding.remedy


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (VERSION_MISMATCH, "nvmlInit_v2: Driver/library version mismatch (18)", "reboot"),
        (DRIVER_NOT_LOADED, "nvmlInit_v2: Driver Not Loaded (9)", "modprobe nvidia"),
        (999, "nvmlInit_v2: Unknown Error (999)", "nvidia-smi"),
    ],
)
def test_what_the_driver_refuses_is_told_with_a_remedy(code, text, remedy):
    finding = worst(diagnose(Driver(code=code, error=text, cards=1), framework()))["driver"]
    assert (finding.status, finding.value) == ("problem", text)
    assert remedy in finding.remedy


def test_a_driver_older_than_cuda_12_is_a_problem():
    findings = worst(diagnose(driver(A100, version="470.82.01", cuda=(11, 4)), framework(A100)))
    assert findings["driver"].status == "problem"
    assert OLDEST_DRIVER in findings["driver"].remedy


@pytest.mark.parametrize(
    ("capability", "entry"),
    [
        ((6, 1), "sm_60"),
        ((7, 5), "sm_70"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((12, 0), "compute_90"),
        ((5, 2), ""),
    ],
)
def test_which_of_the_wheels_kernels_a_card_runs(capability, entry):
    assert kernels_for(capability, BUILD["cuda_compute_capabilities"]) == entry


def test_a_card_older_than_every_kernel_is_a_problem():
    finding = worst(diagnose(driver(K80), framework()))["GPU 0"]
    assert finding.status == "problem"
    assert "3.7" in finding.value and "--devices=CPU:0" in finding.remedy


def test_ptx_needs_a_driver_that_knows_its_cuda():
    assert (
        worst(diagnose(driver(NEWER, cuda=(12, 4)), framework(NEWER)))["GPU 0"].status == "problem"
    )
    assert worst(diagnose(driver(NEWER, cuda=(12, 5)), framework(NEWER))) == {}


def test_memory_that_others_hold_is_a_warning():
    busy = Gpu(**{**A100.__dict__, "free": 1 << 30})
    assert worst(diagnose(driver(busy), framework(busy)))["GPU 0"].status == "warning"


def test_a_hidden_library_is_the_problem_and_its_package_the_remedy(monkeypatch):
    monkeypatch.setattr(libraries, "is_installed", lambda name: False)
    error = "libcudnn.so.9: cannot open shared object file: No such file or directory"
    findings = worst(diagnose(driver(A100), framework(), all_open(libcudnn=error)))
    assert findings["libcudnn.so.9"].status == "problem"
    remedy = findings["libcudnn.so.9"].remedy
    assert "pip install nvidia-cudnn-cu12" in remedy.replace("'", "")
    assert findings["TensorFlow"].status == "problem"


def test_without_any_library_one_command_brings_all():
    errors = {library.soname.partition(".")[0]: "cannot open" for library in WANTED}
    findings = worst(diagnose(driver(A100), framework(), all_open(**errors)))
    assert "tensorflow[and-cuda]==" in findings["libraries"].remedy
    assert "libcudnn.so.9" not in findings


def test_a_missing_nccl_is_a_warning():
    findings = worst(diagnose(driver(A100), framework(A100), all_open(libnccl="cannot open")))
    assert {item: finding.status for item, finding in findings.items()} == {
        "libnccl.so.2": "warning"
    }


def test_an_older_cudnn_on_the_path_is_a_problem():
    opened = [
        (library, Opened(library.soname, path="/opt/cudnn.so", version=90100))
        if "cudnn" in library.soname
        else (library, outcome)
        for library, outcome in all_open()
    ]
    finding = worst(diagnose(driver(A100), framework(A100), opened))["cuDNN"]
    assert finding.status == "problem"
    assert "9.1 at /opt/cudnn.so" in finding.value and "LD_LIBRARY_PATH" in finding.remedy


@pytest.mark.parametrize(
    ("visible", "status"), [("", "problem"), ("1", "warning"), ("-1", "problem")]
)
def test_gpus_that_the_environment_hides(visible, status):
    second = Gpu(**{**A100.__dict__, "index": 1, "uuid": "GPU-b"})
    shown = [second] if visible == "1" else []
    found = diagnose(driver(A100, second), framework(*shown), CUDA_VISIBLE_DEVICES=visible)
    finding = worst(found)["CUDA_VISIBLE_DEVICES"]
    assert (finding.status, finding.remedy) == (status, "`unset CUDA_VISIBLE_DEVICES`")


def test_what_tensorflow_said_is_quoted_when_it_uses_no_gpu():
    said = "E cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error\n"
    finding = worst(diagnose(driver(A100), framework(stderr=said)))["TensorFlow"]
    assert "failed call to cuInit: CUDA_ERROR_UNKNOWN" in finding.value


def test_a_gpu_on_which_nothing_runs_is_a_problem():
    broken = Device(name="GPU:0", description="A100", capability=(8, 0), error="InternalError: no")
    finding = worst(diagnose(driver(A100), framework(gpus=(broken,))))["GPU:0"]
    assert finding.status == "problem" and "InternalError: no" in finding.value


def test_a_gpu_that_was_asked_for_and_is_not_there():
    findings = worst(diagnose(driver(A100), framework(A100), devices="GPU:0,GPU:1"))
    assert "GPU:1" in findings["devices"].value
    assert findings["devices"].remedy == "--devices=GPU:0"


def test_nobody_asks_for_gpus_when_the_processor_is_to_train():
    assert worst(diagnose(driver(K80), framework(), (), devices="CPU:0")) == {}


def test_without_libdevice_xla_is_warned_of():
    finding = worst(diagnose(driver(A100), framework(A100), compiler=None))["XLA"]
    assert finding.status == "warning" and "nvidia-cuda-nvcc-cu12" in finding.remedy


@pytest.mark.parametrize(
    ("version", "bound", "inside"),
    [
        ("2.21.0", "<2.22,>=2.21.0", True),
        ("2.22.0", "<2.22,>=2.21.0", False),
        ("2.21.0rc1", ">=2.21", True),
        ("3.13.2", ">=3.11,<3.14", True),
        ("9.28", "<10.0,>=9.3.0.75", True),
        ("9.1", "<10.0,>=9.3.0.75", False),
        ("1.0", "", True),
    ],
)
def test_versions_within_bounds(version, bound, inside):
    assert within(version, bound) is inside


def test_a_tensorflow_that_does_not_import_is_a_problem():
    broken = Framework(error="it was ended by SIGILL")
    findings = worst(check_software(broken, versions=installed_versions()))
    assert "AVX" in findings["import"].remedy


@pytest.mark.parametrize(
    ("flags", "item", "status"),
    [({"sse2"}, "instructions", "problem"), ({"avx", "avx2"}, "instructions", None)],
)
def test_a_processor_without_avx_is_a_problem(flags, item, status):
    found = worst(check_processor(framework(), flags=frozenset(flags), machine="x86_64"))
    assert (found[item].status if item in found else None) == status


def test_onednn_that_is_off_is_a_warning():
    found = check_processor(framework(onednn=False), flags=frozenset(), machine="aarch64")
    assert worst(found)["oneDNN"].remedy == "`unset TF_ENABLE_ONEDNN_OPTS`"


def test_a_run_folder_that_is_a_file_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("")
    config = DoctorSettings(data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "runs/mine"))
    writable, findings = check_folders(config, data_checks.data_folder(config))
    assert writable == str(tmp_path)
    assert worst(findings)["run folder"].status == "problem"


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(data_checks.shutil, "disk_usage", lambda path: usage)
    config = DoctorSettings(data_dir=str(tmp_path), run_dir=str(tmp_path))
    _, findings = check_folders(config, tmp_path)
    assert worst(findings)["run folder"].status == "problem"


def test_a_set_that_is_not_prepared_is_a_warning(tmp_path):
    config = DoctorSettings(dataset="cifar10", data_dir=str(tmp_path), run_dir=str(tmp_path))
    assert worst(check_folders(config, tmp_path)[1])["cifar10"].status == "warning"
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10/3.0.2/dataset_info.json").touch()
    assert "cifar10" not in worst(check_folders(config, tmp_path)[1])


def test_a_folder_of_images_that_is_not_there(tmp_path):
    config = DoctorSettings(dataset=f"folder:{tmp_path}/none", run_dir=str(tmp_path))
    _, findings = check_folders(config, tmp_path)
    assert worst(findings)["images"].status == "problem"


def test_the_port_of_a_worker_that_another_program_holds():
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other.bind(("127.0.0.1", 0))  # Bound and not listening: nobody answers.
        ports = [taken.getsockname()[1], other.getsockname()[1]]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        config = {"cluster": cluster, "task": {"type": "worker", "index": 0}}
        found = check_cluster("multi_worker_mirrored", {"TF_CONFIG": json.dumps(config)})
    problem = worst(found)[f"127.0.0.1:{ports[0]}"]
    assert problem.status == "problem" and f"sport = :{ports[0]}" in problem.remedy
    assert "not started yet" in found[-1].value


@pytest.mark.parametrize(
    ("strategy", "text", "status"),
    [
        ("mirrored", "", None),
        ("mirrored", "{", "warning"),
        ("multi_worker_mirrored", "", "problem"),
        ("multi_worker_mirrored", "{", "problem"),
    ],
)
def test_tf_config_matters_to_several_workers(strategy, text, status):
    found = worst(check_cluster(strategy, {"TF_CONFIG": text}))
    assert (found["TF_CONFIG"].status if found else None) == status


def test_an_unknown_host_is_a_problem():
    config = {"cluster": {"worker": ["no.such.host.invalid:2222"]}}
    config["task"] = {"type": "worker", "index": 0}
    found = worst(check_cluster("mirrored", {"TF_CONFIG": json.dumps(config)}))
    assert found["no.such.host.invalid:2222"].status == "problem"


def test_every_problem_and_warning_comes_with_a_remedy():
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    for found in (
        diagnose(driver(K80), framework(), compiler=None),
        diagnose(driver(A100), framework(), **hidden),
        check_processor(framework(onednn=False), flags=frozenset({"sse"}), machine="x86_64"),
        check_cluster("multi_worker_mirrored", os.environ | {"TF_CONFIG": "{"}),
    ):
        assert worst(found) and all(finding.remedy for finding in worst(found).values())
