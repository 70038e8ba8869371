"""Two tasks of a real Slurm train together: its daemons run on this machine for the test.

Skipped where Slurm (Debian: slurmctld, slurmd, slurm-client, munge) or the rights are missing.
"""

import json
import os
import shutil
import socket
import subprocess
import time

import launches
import pytest

from tfgpu.launch.ports import free_ports


def _munge_answers():
    try:
        return subprocess.run(["munge", "-n"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "srun"))), reason="needs Slurm"
    ),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="slurmd needs root"),
    pytest.mark.skipif(not _munge_answers(), reason="needs munged, running"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path):
    """The path of the configuration of a Slurm of one node, `localhost`, that is idle."""
    place = tmp_path / "slurm"
    for folder in (place, place / "state", place / "spool"):
        folder.mkdir()
    path = place / "slurm.conf"
    text = CONFIGURATION.format(host=socket.gethostname(), place=place, ports=free_ports(2))
    path.write_text(text)
    environment = launches.environment(SLURM_CONF=str(path))
    daemons = [
        subprocess.Popen([name, "-D"], env=environment, stderr=subprocess.DEVNULL)
        for name in ("slurmctld", "slurmd")
    ]
    try:
        _wait_until_idle(environment)
        yield str(path)
        # Its end: a step tells slurmctld that it is done before slurmd lets go of it.
        _wait_until_idle(environment)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_idle(environment):
    deadline, state = time.monotonic() + 60, ""
    while state != "idle":
        assert time.monotonic() < deadline, f"the node is {state or 'unknown'}"
        time.sleep(0.5)
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        state = done.stdout.strip()


def test_two_tasks_of_srun_train_together(slurm, tmp_path):
    tasks = ["srun", "--nodes=1", "--ntasks=2", "--label"]
    command = launches.command("--backend=slurm", "--", *launches.TRAIN, "--epochs=1")
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    done = subprocess.run(
        [*tasks, *command],
        env=launches.environment(SLURM_CONF=slurm, TFGPU_CLUSTER_TOKEN_FILE=str(token)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name == "digits-lenet-slurm-1.0"
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["status"], result["replicas"]) == ("finished", 2)
