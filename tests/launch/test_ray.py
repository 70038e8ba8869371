"""Workers on a Ray cluster of two nodes, which are processes of this machine."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import launches
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]

# Ends with its standard input. Each line that it reads adds or removes a node.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(num_cpus=1))
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    """A cluster of two nodes with a core each."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=launches.environment(RAY_USAGE_STATS_ENABLED="0"),
        )
        self.address = self.process.stdout.readline().strip()

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.process.communicate(timeout=60)


def ray_flags(*more):
    return ["--backend=ray", "--workers=2", *more, "--", *launches.TRAIN, "--checkpoint_every=10"]


def workers_in(run_dir):
    """The processes that train into a directory."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
        except OSError:
            continue
        if "tfgpu.train" in words and f"--run_dir={run_dir}" in words:
            found.append(int(process))
    return found


def gone(run_dir):
    deadline = time.monotonic() + 20
    while workers_in(run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not workers_in(run_dir)


def test_a_lost_worker_and_a_lost_node_change_no_bit(cluster, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    done = launches.launch(
        "--workers=2", "--", *launches.TRAIN, "--epochs=8", f"--run_dir={whole}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    flags = [*ray_flags("--max_restarts=2"), "--epochs=8", f"--run_dir={again}"]
    with launches.launching(*flags, cwd=tmp_path, RAY_ADDRESS=cluster.address) as process:
        launches.wait_for("epoch 2/8", tmp_path)
        os.kill(workers_in(again)[0], signal.SIGKILL)
        launches.wait_for("epoch 4/8", tmp_path)
        cluster.tell("remove")
        launches.wait_for("restart 2 of at most 2", tmp_path)
        cluster.tell("add")
        assert process.wait(timeout=240) == 0, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert f"on the Ray cluster at {cluster.address}" in said
    assert "was killed by SIGKILL" in said and "was lost, with its node" in said
    assert launches.weights(again) == launches.weights(whole)


def test_a_stop_saves_and_a_killed_launch_leaves_nothing_running(cluster, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*ray_flags(), "--epochs=60", f"--run_dir={run_dir}"]
    with launches.launching(*flags, cwd=tmp_path, RAY_ADDRESS=cluster.address) as process:
        launches.wait_for("epoch  2/60", tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, (tmp_path / "said").read_text()
    assert list((run_dir / "checkpoints").glob("step-*"))
    assert gone(run_dir)
    with launches.launching(*flags, cwd=tmp_path, RAY_ADDRESS=cluster.address) as process:
        launches.wait_for(r"samples/s", tmp_path)
        process.kill()
        assert gone(run_dir)


def test_a_cluster_of_this_machine_alone_is_started_where_there_is_none(tmp_path):
    flags = ["--backend=ray", "--workers=1", "--", *launches.TRAIN, "--epochs=1"]
    # Nothing of tf.keras of old reaches the workers.
    done = launches.launch(*flags, cwd=tmp_path, TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert json.loads((run_dir / "result.json").read_text())["status"] == "finished"


def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster, tmp_path):
    flags = ["--backend=ray", "--workers=3", "--cpus=1", "--", "train"]
    done = launches.launch(*flags, cwd=tmp_path, RAY_ADDRESS=cluster.address)
    assert done.returncode == 2
    assert "room for 2" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there_is_refused(tmp_path):
    flags = ["--backend=ray", "--workers=2", "--", "train"]
    done = launches.launch(*flags, cwd=tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2
    assert "RAY_ADDRESS=127.0.0.1:1" in done.stderr.splitlines()[-1]
