"""The settings of a launch."""

import dataclasses
import re

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import Settings, choice, custom, text, whole
from tfgpu.errors import RequestError

BACKENDS = ("local", "slurm", "kubernetes", "kubernetes_pod", "ray")
LARGEST_PORT = 2**16 - 1

_WORKERS, _KUBERNETES = "Workers", "Kubernetes"
# Settings that only some backends have a use for.
_ONLY = {
    "max_restarts": ("local", "kubernetes", "ray"),
    "port": ("slurm", "kubernetes", "kubernetes_pod"),
    "cpus": ("kubernetes", "ray"),
    "gpus": ("local", "kubernetes", "ray"),
    "name": ("kubernetes", "kubernetes_pod"),
    **dict.fromkeys(
        ("image", "namespace", "memory", "shared_volume", "token_secret", "manifest"),
        ("kubernetes",),
    ),
}


def _check_name(value: str) -> str | None:
    # Of a JobSet, whose name begins the names of its pods: "NAME-workers-0-INDEX", a DNS label.
    if len(value) <= 40 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", value):
        return None
    return "must be lower-case letters, digits and hyphens, at most 40, from a letter on"


def _check_label(value: str) -> str | None:
    if len(value) <= 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", value):
        return None
    return "must be lower-case letters, digits and hyphens, at most 63"


def _check_object(value: str) -> str | None:
    label = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if len(value) <= 253 and re.fullmatch(rf"{label}(\.{label})*", value):
        return None
    return "is no name of a Kubernetes object: lower-case letters, digits, hyphens and dots"


def _check_memory(value: str) -> str | None:
    if re.fullmatch(r"[1-9]\d*(Ki|Mi|Gi|Ti|k|M|G|T)?", value):
        return None
    return "must be a quantity of Kubernetes, such as 16Gi"


class LaunchSettings(Settings, section=_WORKERS, on_resume="ignored", tunable=False):
    """Start the workers of one training, each a process of its own: on this machine, as tasks of
    Slurm, as pods of Kubernetes, or on the nodes of a Ray cluster. What stands behind -- is what
    each worker runs: `train`, `evaluate`, `predict` or `doctor` with their flags.

    Examples:
        # two processes share the cores, or the GPUs, of this machine
        tfgpu launch --workers=2 -- train --dataset=digits
        # a worker that is lost is started again, with all others, from the last checkpoint
        tfgpu launch --workers=2 --max_restarts=3 -- train --checkpoint_every=100
        # in a job of Slurm, one worker a task
        srun tfgpu launch --backend=slurm -- train --dataset=cifar10
        # four pods of Kubernetes
        tfgpu launch --backend=kubernetes --workers=4 --gpus=8 --image=example.com/tfgpu
            --shared_volume=runs -- train --dataset=cifar10 | kubectl apply -f -
        # the nodes of a Ray cluster
        tfgpu launch --backend=ray --workers=4 -- train --dataset=cifar10
    """

    sections = (_WORKERS, _KUBERNETES, shared.GENERAL)
    arguments = "-- train|evaluate|predict|doctor [--flag=value ...]"
    experiment = False

    paths: tuple[str, ...] = custom(())
    """What stands before -- and is no flag: nothing."""
    workers: int | None = whole(
        None, 1, "it is the number of processes", default="none: it has to be given"
    )
    """Processes that train together. Under Slurm it is the number of tasks, and need not be
    given."""
    backend: str = choice("local", BACKENDS)
    """Where they run: processes of this machine; the tasks that srun started, each of which runs
    this command; a manifest for Kubernetes, whose pods use kubernetes_pod; actors of Ray."""
    max_restarts: int = whole(0, 0, "0 is never")
    """How often all workers are started again after one of them was lost (local, kubernetes,
    ray). They go on from the last checkpoint."""
    join_timeout: int | None = whole(None, 1, word="auto", values="SECONDS")
    """How long workers wait for each other at the start; `auto` is their own default."""
    gpus: int | None = whole(None, 0, word="auto")
    """GPUs of each worker. `auto` divides those of this machine, or of the Ray cluster, evenly;
    none under Kubernetes."""
    cpus: int | None = whole(None, 1, word="auto")
    """Cores of each worker that are asked of Kubernetes or Ray. `auto` asks Kubernetes for
    nothing, and divides the nodes of the Ray cluster evenly."""
    port: int | None = whole(None, 1, f"{LARGEST_PORT} is the last", word="auto", values="PORT")
    """The port of a node's first worker. `auto` follows from the job's number under Slurm, and is
    2222 under Kubernetes."""

    image: str | None = text(
        None,
        "name the container image, such as example.com/tfgpu:1",
        default="none: it has to be given",
        values="IMAGE",
        section=_KUBERNETES,
    )
    """The container image, which has tfgpu installed."""
    shared_volume: str | None = text(
        None,
        "name a PersistentVolumeClaim",
        _check_object,
        default="none: it has to be given",
        values="CLAIM",
        section=_KUBERNETES,
    )
    """The PersistentVolumeClaim that all pods mount at /runs, for the run directory. Pods on
    several nodes need one with the access mode ReadWriteMany."""
    name: str = text("tfgpu", "name the JobSet", _check_name, values="NAME", section=_KUBERNETES)
    """The name of the JobSet, with which the names of its pods begin."""
    namespace: str | None = text(
        None, "name a namespace", _check_label, word="current", values="NAME", section=_KUBERNETES
    )
    """The namespace; `current` leaves it to kubectl."""
    memory: str | None = text(
        None, "such as 16Gi", _check_memory, word="any", values="QUANTITY", section=_KUBERNETES
    )
    """Memory of each worker, requested and limit, such as 16Gi."""
    token_secret: str = text(
        "tfgpu-cluster-token", "name a Secret", _check_object, values="NAME", section=_KUBERNETES
    )
    """The Secret whose key `token` holds what workers know each other by."""
    manifest: str | None = text(
        None, "name a file", word="stdout", values="FILE", section=_KUBERNETES
    )
    """Where the manifest is written."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.paths:
            raise RequestError(
                f"{self.paths[0]!r} is not a flag; what the workers run stands behind --"
            )
        if self.port is not None and self.port > LARGEST_PORT:
            self.refuse("port", f"must be at most {LARGEST_PORT}")
        for field in dataclasses.fields(self):
            backends = _ONLY.get(field.name, BACKENDS)
            if self.backend not in backends and getattr(self, field.name) != field.default:
                self.refuse(
                    field.name,
                    f"is for --backend={' and '.join(backends)}; leave it out for "
                    f"--backend={self.backend}",
                )
        if self.workers is None and self.backend != "slurm":
            raise RequestError(
                "--workers is missing: say how many processes train together, such as --workers=2"
            )
        for name, what in (("image", "the container image"), ("shared_volume", "the volume")):
            if self.backend == "kubernetes" and getattr(self, name) is None:
                raise RequestError(f"--{name} is missing: name {what}; `--help` says more")
