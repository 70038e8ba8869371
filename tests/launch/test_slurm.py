"""A task of Slurm finds its place; the variables are those that srun of Slurm 22.05 sets."""

import json
import subprocess

import launches
import pytest

from tfgpu.errors import RequestError
from tfgpu.launch import shares, slurm

# srun -m cyclic -N3 -n5: the number of each task, its node, its number there, the node's name.
CYCLIC = [(0, 0, 0, "n2"), (1, 1, 0, "n9"), (2, 2, 0, "n10"), (3, 0, 1, "n2"), (4, 1, 1, "n9")]


def variables(*, rank=0, node=0, local=0, nodes="n[2,9-10]", counts="2(x2),1", tasks=5, **more):
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": counts,
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NTASKS": str(tasks),
        **more,
    }


def find(environment, *, workers=None, port=None, **more):
    return slurm.find(environment, workers=workers, port=port, **more)


@pytest.fixture
def cores(monkeypatch):
    """Sets the cores that this process may use."""
    return lambda *numbers: monkeypatch.setattr(shares, "usable_cores", lambda: numbers)


@pytest.fixture
def gpus(monkeypatch):
    """Sets the GPUs that CUDA shows this process."""
    return lambda *names: monkeypatch.setattr(shares, "visible_gpus", lambda: list(names))


def test_each_task_has_the_address_of_its_own_node():
    """With `--distribution=cyclic`, SLURM_PROCID alone would name another node."""
    places = {r: find(variables(rank=r, node=n, local=k)) for r, n, k, _ in CYCLIC}
    for rank, _, _, name in CYCLIC:
        assert places[rank].addresses[places[rank].index].startswith(f"{name}:")


def test_all_tasks_find_the_same_addresses_and_different_places():
    places = [find(variables(rank=r, node=n, local=k)) for r, n, k, _ in CYCLIC]
    assert len({place.addresses for place in places}) == 1
    assert sorted(place.index for place in places) == [0, 1, 2, 3, 4]
    assert len(set(places[0].addresses)) == 5


def test_the_first_task_is_the_chief():
    assert find(variables()).index == 0


def test_ports_of_neighbouring_jobs_and_steps_differ():
    first = {(job, step): slurm.first_port(job, step) for job in range(90, 130) for step in (0, 1)}
    assert len(set(first.values())) == len(first)


def test_ports_are_below_those_of_outgoing_connections():
    ports = [slurm.first_port(job, step) for job in range(1000) for step in range(5)]
    assert 20_000 <= min(ports) and max(ports) + 64 <= 32_768


def test_a_port_that_is_given_is_the_first_of_each_node():
    place = find(variables(), port=15_000)
    assert place.addresses == ("n2:15000", "n2:15001", "n9:15000", "n9:15001", "n10:15000")


def test_tasks_that_share_the_cores_of_their_job_divide_them(cores):
    cores(0, 1, 2, 3)
    shares_of = [find(variables(local=k, SLURM_CPUS_ON_NODE="4")).cores for k in (0, 1)]
    assert shares_of == [(0, 1), (2, 3)]


@pytest.mark.parametrize("on_node", ["8", "2"], ids=["bound by Slurm", "not confined to the job"])
def test_cores_that_are_not_just_those_of_the_node_are_left_alone(cores, on_node):
    cores(0, 1, 2, 3)
    assert find(variables(SLURM_CPUS_ON_NODE=on_node)).cores == ()


def test_tasks_that_see_all_gpus_of_the_node_divide_them(gpus):
    gpus("0", "1", "2", "3")
    found = [find(variables(local=k, SLURM_GPUS_ON_NODE="4")).gpus for k in (0, 1)]
    assert found == ["0,1", "2,3"]


def test_gpus_that_slurm_has_bound_are_left_alone(gpus):
    gpus("0")
    assert find(variables(SLURM_GPUS_ON_NODE="2")).gpus is None


def test_gpus_are_left_alone_where_the_workers_use_none(gpus):
    gpus("0", "1")
    assert find(variables(SLURM_GPUS_ON_NODE="2"), on_cpu=True).gpus is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_STEP_NODELIST": None}, "srun tfgpu launch"),
        ({"SLURM_STEP_ID": None}, "srun tfgpu launch"),
        ({"SLURM_STEP_NODELIST": "n[2"}, "n[2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "is not 5 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2),x"}, "SLURM_STEP_TASKS_PER_NODE"),
        ({"SLURM_NODEID": "3"}, "SLURM_NODEID=3"),
        ({"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID="),
    ],
)
def test_variables_that_make_no_sense_are_refused(change, said):
    wrong = {name: value for name, value in (variables() | change).items() if value is not None}
    with pytest.raises(RequestError) as refused:
        find(wrong)
    assert said in str(refused.value)


def test_another_number_of_workers_than_tasks_is_refused():
    with pytest.raises(RequestError, match="--workers=4: srun started 5 tasks"):
        find(variables(), workers=4)


def test_ports_beyond_the_last_are_refused():
    with pytest.raises(RequestError, match="65535"):
        find(variables(), port=65_535)


def one_task(local, port, cwd, *flags, **more):
    """The task of a step with two of them on this machine."""
    environment = variables(local=local, nodes="localhost", counts="2", tasks=2) | more
    return subprocess.Popen(
        launches.command("--backend=slurm", f"--port={port}", "--", *launches.TRAIN, *flags),
        env=launches.environment(**environment),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_port_that_is_taken_is_one_line(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        task = one_task(0, port, tmp_path, TFGPU_CLUSTER_TOKEN="secret")
        said, _ = task.communicate(timeout=30)
    assert task.returncode == 2
    assert said.startswith("tfgpu: ") and said.count("\n") == 1
    assert str(port) in said and "--port" in said


def test_a_missing_token_is_one_line(tmp_path):
    task = one_task(0, 15_000, tmp_path)
    said, _ = task.communicate(timeout=30)
    assert task.returncode == 2
    assert said.startswith("tfgpu: TFGPU_CLUSTER_TOKEN is not set") and said.count("\n") == 1


@pytest.mark.slow
def test_two_tasks_train_together(tmp_path):
    from tfgpu.launch.ports import free_ports

    port = free_ports(1)[0]
    tasks = [
        one_task(k, port, tmp_path, "--epochs=1", TFGPU_CLUSTER_TOKEN="secret") for k in (0, 1)
    ]
    said = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    # The name follows from the job, so that a job that is requeued continues its run.
    result = json.loads((tmp_path / "runs/digits-lenet-slurm-7.0/result.json").read_text())
    assert (result["status"], result["replicas"]) == ("finished", 2)
