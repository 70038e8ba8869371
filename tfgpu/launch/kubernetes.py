"""A JobSet of Kubernetes whose pods are the workers, and the place of a worker in its pod.

The manifest uses the API jobset.x-k8s.io/v1alpha2: one Indexed Job of one pod a worker, whose host
names are `<jobset>-workers-0-<index>.<jobset>`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tfgpu.artifacts import files
from tfgpu.errors import RequestError
from tfgpu.launch import place, supervise
from tfgpu.launch.command import Command
from tfgpu.launch.place import Place
from tfgpu.launch.settings import LaunchSettings

VOLUME = PurePosixPath("/runs")
"""Where the pods mount the shared volume."""
_PORT = 2222
_JOB = "workers"
_INDEX = "JOB_COMPLETION_INDEX"
# Codes after which the same command fails again: a bug, the request, the data, a model file, and
# the work itself. What is left are lost workers and signals, such as those of a node that drains.
_PERMANENT = [1, 2, 3, 4, 5]
_GRACE_SECONDS = 120


def write(config: LaunchSettings, command: Command) -> None:
    """Writes the manifest to the file or to standard output.

    Args:
        config: The settings of the launch.
        command: What each worker runs.

    Raises:
        RequestError: PyYAML is missing, the run would not be on the volume, or the file cannot be
            written.
        OSError: The disk is full.
    """
    if importlib.util.find_spec("yaml") is None:
        raise RequestError(
            "a manifest needs PyYAML, which is not installed: pip install 'tfgpu[kubernetes]'"
        )
    import yaml

    if config.max_restarts and not command.resume:
        raise RequestError(
            f"--resume=never and --max_restarts={config.max_restarts} exclude each other: pods "
            "that start again continue the run; leave one out"
        )
    described = manifest(config, _on_volume(config, command))
    text = yaml.safe_dump(described, sort_keys=False, width=100)
    if config.manifest is None:
        print(text, end="")
        return
    path = Path(config.manifest).expanduser()
    files.make_directory(path.parent, flag="manifest")
    if path.is_dir():
        raise RequestError(f"--manifest={path}: is a directory; name a file")
    with files.replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    supervise.say(f"the manifest is in {path}; kubectl apply -f {path}")


def manifest(config: LaunchSettings, command: Command) -> dict[str, Any]:
    """Returns the JobSet as plain values.

    Args:
        config: The settings of the launch.
        command: What each worker runs.
    """
    port = config.port or _PORT
    ours = ["launch", "--backend=kubernetes_pod", f"--name={config.name}"]
    ours += [f"--workers={config.workers}", f"--port={port}"]
    secret = {"name": config.token_secret, "key": "token"}
    mounts = [{"name": "runs", "mountPath": str(VOLUME)}]
    container: dict[str, Any] = {
        "name": "worker",
        "image": config.image,
        "command": ["tfgpu"],
        "args": [*ours, "--", *command.argv],
        "env": [{"name": "TFGPU_CLUSTER_TOKEN", "valueFrom": {"secretKeyRef": secret}}],
        "ports": [{"containerPort": port}],
        "volumeMounts": mounts,
    }
    volumes: list[dict[str, Any]] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": config.shared_volume}}
    ]
    if resources := _resources(config):
        container["resources"] = resources
    if config.gpus:
        # NCCL exchanges between GPUs through it; a container has 64 MB without.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "containers": [container],
        "volumes": volumes,
    }
    own_fault = {"containerName": "worker", "operator": "In", "values": _PERMANENT}
    job = {
        "completionMode": "Indexed",
        "completions": config.workers,
        "parallelism": config.workers,
        # One pod that fails fails them all: the JobSet starts all again.
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": own_fault}]},
        "template": {"spec": pod},
    }
    metadata = {"name": config.name}
    if config.namespace is not None:
        metadata["namespace"] = config.namespace
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # Workers wait for each other before any of them is ready.
            "network": {
                "enableDNSHostnames": True,
                "publishNotReadyAddresses": True,
                "subdomain": config.name,
            },
            "failurePolicy": {
                "maxRestarts": config.max_restarts,
                # Old pods are gone before new ones start: they hold the lock of the run.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "fault_of_the_request_or_the_work",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": job}}],
        },
    }


def become_worker(config: LaunchSettings, command: Command) -> None:
    """Becomes the worker of this pod.

    Args:
        config: The settings that the manifest gives.
        command: What each worker runs.

    Raises:
        RequestError: This is no pod of the manifest, or the port is taken.
    """
    found = find(os.environ, config)
    place.take(found, command, token_how="the manifest takes it from a Secret")


def find(variables: Mapping[str, str], config: LaunchSettings) -> Place:
    """Finds the place of a pod among the workers.

    Args:
        variables: The environment, in which an Indexed Job has set JOB_COMPLETION_INDEX.
        config: The settings that the manifest gives.

    Raises:
        RequestError: The variable is absent or makes no sense.
    """
    workers = config.workers or 1
    index = variables.get(_INDEX, "")
    if not index.isdecimal() or int(index) >= workers:
        raise RequestError(
            f"--backend=kubernetes_pod: {_INDEX}={index or '(not set)'} is no number below "
            f"--workers={workers}; it is for the pods of the manifest that --backend=kubernetes "
            "writes"
        )
    hosts = [f"{config.name}-{_JOB}-0-{number}.{config.name}" for number in range(workers)]
    return Place(tuple(f"{host}:{config.port or _PORT}" for host in hosts), int(index))


def _on_volume(config: LaunchSettings, command: Command) -> Command:
    """Has the run on the shared volume: what else a pod writes goes with it."""
    if command.run_dir is None:
        if command.name != "train":
            return command
        return command.in_directory(VOLUME / config.name)
    run_dir = os.path.normpath(command.run_dir)
    if not PurePosixPath(run_dir).is_relative_to(VOLUME):
        raise RequestError(
            f"--run_dir={command.run_dir}: is lost with its pod; the volume is at {VOLUME}, so "
            f"write --run_dir={VOLUME}/NAME"
        )
    return command


def _resources(config: LaunchSettings) -> dict[str, dict[str, str | int]]:
    """Requests and limits of a worker; Kubernetes takes GPUs as limits."""
    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}
    if config.cpus is not None:
        # No limit: it would stop a worker in the middle of a step, and all wait for it.
        requests["cpu"] = config.cpus
    if config.memory is not None:
        requests["memory"] = limits["memory"] = config.memory
    if config.gpus:
        limits["nvidia.com/gpu"] = config.gpus
    return {k: v for k, v in (("requests", requests), ("limits", limits)) if v}
