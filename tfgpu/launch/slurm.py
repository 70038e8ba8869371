"""The place of a worker that srun started as one of its tasks.

All tasks find the same addresses without talking to each other, from what Slurm tells each of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfgpu.errors import RequestError
from tfgpu.launch import place, shares
from tfgpu.launch.command import Command
from tfgpu.launch.host_list import expand, tasks_of_nodes
from tfgpu.launch.place import Place
from tfgpu.launch.settings import LARGEST_PORT, LaunchSettings

FIRST_PORT = 20_000
"""Ports of jobs lie from here on, and below 32,768, from where on Linux gives ports to outgoing
connections."""
_BLOCK = 64  # Ports of the workers of one node.
_BLOCKS = 187
"""Blocks of ports; prime to 4, so that 187 jobs in a row differ, and the steps of each."""


def run(config: LaunchSettings, command: Command) -> None:
    """Becomes the worker of this task.

    Args:
        config: The settings of the launch.
        command: What each worker runs.

    Raises:
        RequestError: This is no task of srun, or the port is taken.
    """
    found = find(os.environ, workers=config.workers, port=config.port, on_cpu=command.on_cpu)
    if command.name == "train" and command.run_dir is None:
        # The same in a job that Slurm requeues, which so continues its run.
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        command = command.in_directory(command.default_run_dir(f"slurm-{step}"))
    place.take(
        found,
        command,
        token_how="before srun, export TFGPU_CLUSTER_TOKEN=$(openssl rand -hex 16), or name a file "
        "of mode 600 that all nodes see by TFGPU_CLUSTER_TOKEN_FILE",
    )


def first_port(job: int, step: int) -> int:
    """Returns the port of the first worker of each node; the others follow."""
    return FIRST_PORT + (4 * job + step) % _BLOCKS * _BLOCK


def find(
    variables: Mapping[str, str], *, workers: int | None, port: int | None, on_cpu: bool = False
) -> Place:
    """Finds the place of this task.

    Workers are counted node by node. Slurm's own number, SLURM_PROCID, depends on
    `--distribution`; with any but `block` it does not tell the node of another task. Both begin
    with the same task, the chief.

    Args:
        variables: The environment.
        workers: How many there ought to be; None for as many as there are tasks.
        port: Of the first worker of each node; None for one that follows from the job's number.
        on_cpu: Whether to leave GPUs alone.

    Raises:
        RequestError: Slurm's variables are absent or make no sense.
    """
    if "SLURM_STEP_NODELIST" not in variables or "SLURM_STEP_ID" not in variables:
        raise RequestError(
            "--backend=slurm: SLURM_STEP_NODELIST is not set, so that this is no task of srun; "
            "start it by srun, also inside sbatch: srun tfgpu launch --backend=slurm -- train"
        )

    def number(*names: str) -> int:
        name = next((each for each in names if each in variables), names[0])
        if not variables.get(name, "").isdecimal():
            raise RequestError(
                f"--backend=slurm: {name}={variables.get(name, '')} is not a number; it comes from "
                "srun, so leave it alone"
            )
        return int(variables[name])

    counts_in = next(
        (n for n in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if n in variables),
        "SLURM_STEP_TASKS_PER_NODE",
    )
    try:
        nodes = expand(variables["SLURM_STEP_NODELIST"])
        counts = tasks_of_nodes(variables.get(counts_in, ""))
    except ValueError as error:
        raise RequestError(f"--backend=slurm: SLURM_STEP_NODELIST, {counts_in}: {error}") from None
    node, local = number("SLURM_NODEID"), number("SLURM_LOCALID")
    tasks = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if len(counts) != len(nodes) or sum(counts) != tasks:
        raise RequestError(
            f"--backend=slurm: {variables['SLURM_STEP_NODELIST']} with {variables[counts_in]} "
            f"tasks is not {tasks} tasks; start them all by one srun"
        )
    if node >= len(nodes) or local >= counts[node]:
        raise RequestError(
            f"--backend=slurm: SLURM_NODEID={node}, SLURM_LOCALID={local} is none of "
            f"{variables['SLURM_STEP_NODELIST']} with {variables[counts_in]} tasks"
        )
    if workers not in (None, tasks):
        raise RequestError(
            f"--workers={workers}: srun started {tasks} task{'s' if tasks > 1 else ''}; leave it "
            f"out, or say srun --ntasks={workers}"
        )
    first = port or first_port(number("SLURM_JOB_ID"), number("SLURM_STEP_ID"))
    if first + max(counts) - 1 > LARGEST_PORT:
        raise RequestError(
            f"--port={first}: the {max(counts)} workers of a node take it and those after it, and "
            f"{LARGEST_PORT} is the last; choose a lower one"
        )
    return Place(
        addresses=tuple(
            f"{host}:{first + each}"
            for host, count in zip(nodes, counts, strict=True)
            for each in range(count)
        ),
        index=sum(counts[:node]) + local,
        cores=_cores(variables, counts[node], local),
        gpus=None if on_cpu else _gpus(variables, counts[node], local),
    )


def _cores(variables: Mapping[str, str], tasks: int, local: int) -> tuple[int, ...]:
    """The cores of this task, where all tasks of the node run on the same ones.

    Fewer than the node's part of the job: Slurm has bound them already. More: the job is not
    confined to its part, and nothing tells which cores that is.
    """
    cores = shares.usable_cores()
    if tasks == 1 or variables.get("SLURM_CPUS_ON_NODE") != str(len(cores)):
        return ()
    return shares.core_shares(cores, tasks)[local]


def _gpus(variables: Mapping[str, str], tasks: int, local: int) -> str | None:
    """The GPUs of this task, where Slurm shows each of them those of all tasks of the node."""
    if tasks == 1:
        return None
    gpus = shares.visible_gpus()
    on_node = variables.get("SLURM_GPUS_ON_NODE", "")
    count = int(on_node) if on_node.isdecimal() else len(gpus)
    if not gpus or len(gpus) * tasks <= count:
        return None
    return shares.gpu_shares(gpus, tasks)[local]
