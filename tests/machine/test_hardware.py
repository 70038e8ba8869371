"""GPUs as the driver lists them, and free memory under limits."""

import pytest

from tfgpu.machine import hardware

GPUS = hardware.parse_nvidia_smi(
    "0, GPU-aaaa, 81559, 80000, 550.54.15\n"
    "1, GPU-bbbb, 81559, 100, 550.54.15\n"
    "2, GPU-cccc, [N/A], [N/A], 550.54.15\n"
)


def test_nvidia_smi_rows():
    assert [(gpu.index, gpu.free) for gpu in GPUS] == [(0, 80000 << 20), (1, 100 << 20)]
    assert hardware.parse_nvidia_smi("NVIDIA-SMI has failed") == []


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("GPU-bb", [1]),
        ("0,-1,1", [0]),
        ("", []),
        ("MIG-GPU-aaaa/1/0", []),
    ],
)
def test_visible_gpus(visible, indices):
    assert [gpu.index for gpu in hardware.visible_gpus(GPUS, visible)] == indices


def machine(root, *, group="/", **files):
    """A root with 1000 kB of free memory, and the given cgroup files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:  4000 kB\nMemAvailable:  1000 kB\n")
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_without_limits(tmp_path):
    assert hardware.host_free_memory(root=machine(tmp_path)) == 1000 << 10


def test_an_unlimited_cgroup_is_no_limit(tmp_path):
    root = machine(tmp_path, memory_dot_max="max\n", memory_dot_current="5\n")
    assert hardware.host_free_memory(root=root) == 1000 << 10


def test_a_cgroup_limit_counts_without_the_page_cache(tmp_path):
    root = machine(
        tmp_path,
        memory_dot_max="5000\n",
        memory_dot_current="4500\n",
        memory_dot_stat="anon 10\ninactive_file 300\n",
    )
    assert hardware.host_free_memory(root=root) == 800


def test_a_limit_of_a_parent_cgroup_counts(tmp_path):
    root = machine(
        tmp_path, group="/a/b", a__memory_dot_max="5000\n", a__memory_dot_current="4500\n"
    )
    assert hardware.host_free_memory(root=root) == 500


def test_free_memory_is_never_negative(tmp_path):
    root = machine(tmp_path, memory_dot_max="5000\n", memory_dot_current="6000\n")
    assert hardware.host_free_memory(root=root) == 0


def test_virtual_cpus_share_the_memory(tensorflow):
    assert hardware.free_memory("CPU:0") < 0.6 * hardware.host_free_memory()
