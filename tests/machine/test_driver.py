"""Asking NVML: through a library of the same interface, compiled here."""

import shutil
import subprocess

import pytest

from tfgpu.machine import driver

# The signatures of nvml.h; `%(answers)s` are the numbers that differ from test to test.
SOURCE = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
static int gpus[2];
int nvmlInit_v2(void) { return %(init)d; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) {
    return code == 18 ? "Driver/library version mismatch" : "?"; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) {
    strncpy(to, "550.54.15", size); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *to) { *to = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **to) { *to = &gpus[i]; return 0; }
static int number(void *gpu) { return (int)((int *)gpu - gpus); }
int nvmlDeviceGetName(void *gpu, char *to, unsigned size) {
    strncpy(to, number(gpu) ? "NVIDIA L4" : "NVIDIA A100-SXM4-40GB", size); return 0; }
int nvmlDeviceGetUUID(void *gpu, char *to, unsigned size) {
    strncpy(to, number(gpu) ? "GPU-b" : "GPU-a", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *to) {
    to->total = 40ULL << 30; to->free = 39ULL << 30; to->used = 1ULL << 30;
    return number(gpu) ? 3 : 0; }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    *major = 8; *minor = number(gpu) ? 9 : 0; return 0; }
int nvmlDeviceGetComputeMode(void *gpu, int *mode) { *mode = number(gpu) ? 2 : 0; return 0; }
"""


@pytest.fixture
def library(tmp_path):
    """Compiles an NVML whose `nvmlInit` returns a code; returns its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")

    def compile_(init=0):
        source = tmp_path / "nvml.c"
        source.write_text(SOURCE % {"init": init})
        made = tmp_path / "libnvidia-ml.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
        return str(made)

    return compile_


def test_what_the_library_answers_becomes_plain_data(library, tmp_path):
    found = driver.ask(library=library(), root=tmp_path)
    assert (found.version, found.cuda, found.error) == ("550.54.15", (12, 4), "")
    first, second = found.gpus
    assert first == driver.Gpu(
        index=0,
        name="NVIDIA A100-SXM4-40GB",
        uuid="GPU-a",
        capability=(8, 0),
        total=40 << 30,
        free=39 << 30,
    )
    # NVML does not tell the memory of every device: code 3 is "not supported".
    assert (second.capability, second.total, second.prohibited) == ((8, 9), None, True)


def test_a_mismatch_of_driver_and_library_is_kept(library, tmp_path):
    found = driver.ask(library=library(init=18), root=tmp_path)
    assert found.code == driver.VERSION_MISMATCH
    assert "Driver/library version mismatch" in found.error


def test_a_machine_without_a_driver(tmp_path):
    found = driver.ask(library="libno-such-driver.so.1", root=tmp_path)
    assert (found.code, found.gpus, found.cards) == (None, (), 0)
    assert "libno-such-driver" in found.error


def test_a_card_is_seen_without_a_driver(tmp_path):
    for name, vendor, kind in [
        ("gpu", "0x10de", "0x030200"),
        ("its sound", "0x10de", "0x040300"),
        ("another maker's", "0x1002", "0x030000"),
    ]:
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert driver.ask(library="libno-such-driver.so.1", root=tmp_path).cards == 1
