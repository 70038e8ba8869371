"""The settings of a launch."""

import dataclasses
import functools

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import Settings, choice, matching, setting
from tfgpu.errors import RequestError

BACKENDS = ("local", "slurm", "kubernetes", "kubernetes_pod", "ray")
LARGEST_PORT = 2**16 - 1

_WORKERS, _KUBERNETES = "Workers", "Kubernetes"
_TO_BE_GIVEN = "none: it has to be given"
_of_kubernetes = functools.partial(setting, section=_KUBERNETES)
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

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_check_object = matching(
    rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*",
    "is no name of a Kubernetes object: lower-case letters, digits, hyphens and dots",
)


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

    paths: tuple[str, ...] = setting(())
    """What stands before -- and is no flag: nothing."""
    workers: int | None = setting(None, "it is the number of processes", default=_TO_BE_GIVEN)
    """Processes that train together. Under Slurm it is the number of tasks, and need not be
    given."""
    backend: str = choice("local", BACKENDS)
    """Where they run: processes of this machine; the tasks that srun started, each of which runs
    this command; a manifest for Kubernetes, whose pods use kubernetes_pod; actors of Ray."""
    max_restarts: int = setting(0, "0 is never", minimum=0)
    """How often all workers are started again after one of them was lost (local, kubernetes,
    ray). They go on from the last checkpoint."""
    join_timeout: int | None = setting(None, word="auto", values="SECONDS")
    """How long workers wait for each other at the start; `auto` is their own default."""
    gpus: int | None = setting(None, word="auto", minimum=0)
    """GPUs of each worker. `auto` divides those of this machine, or of the Ray cluster, evenly;
    none under Kubernetes."""
    cpus: int | None = setting(None, word="auto")
    """Cores of each worker that are asked of Kubernetes or Ray. `auto` asks Kubernetes for
    nothing, and divides the nodes of the Ray cluster evenly."""
    port: int | None = setting(
        None,
        f"{LARGEST_PORT} is the last",
        word="auto",
        values="PORT",
        check=lambda value: f"must be at most {LARGEST_PORT}" if value > LARGEST_PORT else None,
    )
    """The port of a node's first worker. `auto` follows from the job's number under Slurm, and is
    2222 under Kubernetes."""

    image: str | None = _of_kubernetes(
        None,
        "name the container image, such as example.com/tfgpu:1",
        values="IMAGE",
        default=_TO_BE_GIVEN,
    )
    """The container image, which has tfgpu installed."""
    shared_volume: str | None = _of_kubernetes(
        None,
        "name a PersistentVolumeClaim",
        values="CLAIM",
        default=_TO_BE_GIVEN,
        check=_check_object,
    )
    """The PersistentVolumeClaim that all pods mount at /runs, for the run directory. Pods on
    several nodes need one with the access mode ReadWriteMany."""
    name: str = _of_kubernetes(
        "tfgpu",
        "name the JobSet",
        values="NAME",
        # It begins the names of the pods, "NAME-workers-0-INDEX", which are DNS labels.
        check=matching(
            r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?",
            "must be lower-case letters, digits and hyphens, at most 40, from a letter on",
        ),
    )
    """The name of the JobSet, with which the names of its pods begin."""
    namespace: str | None = _of_kubernetes(
        None,
        "name a namespace",
        word="current",
        values="NAME",
        check=matching(
            r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            "must be lower-case letters, digits and hyphens, at most 63",
        ),
    )
    """The namespace; `current` leaves it to kubectl."""
    memory: str | None = _of_kubernetes(
        None,
        "such as 16Gi",
        word="any",
        values="QUANTITY",
        check=matching(
            r"[1-9]\d*(Ki|Mi|Gi|Ti|k|M|G|T)?", "must be a quantity of Kubernetes, such as 16Gi"
        ),
    )
    """Memory of each worker, requested and limit, such as 16Gi."""
    token_secret: str = _of_kubernetes(
        "tfgpu-cluster-token", "name a Secret", values="NAME", check=_check_object
    )
    """The Secret whose key `token` holds what workers know each other by."""
    manifest: str | None = _of_kubernetes(None, "name a file", word="stdout", values="FILE")
    """Where the manifest is written."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.paths:
            raise RequestError(
                f"{self.paths[0]!r} is not a flag; what the workers run stands behind --"
            )
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
