"""How a command that runs on several machines meets the others, before TensorFlow starts."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import Any

from tfgpu.cli import interrupts
from tfgpu.cli.console import Console
from tfgpu.cli.native_stderr import filtered
from tfgpu.cli.settings import Settings
from tfgpu.cluster import identity, membership, rendezvous
from tfgpu.cluster.tf_config import read_cluster, split_address

_OF_ONE_PROCESS = {"run_dir", "out", "data_dir", "devices", "intra_op_threads"}
"""Settings in which workers may differ, beside those that are no part of a run."""


@contextlib.contextmanager
def joined(config: Any, *, console: Console) -> Iterator[membership.Membership]:
    """Waits for the other workers that TF_CONFIG names; alone under every other strategy.

    Args:
        config: Settings of a command, with `strategy` and `join_timeout`.
        console: Says who is missing.

    Yields:
        The membership of this process, which tells the others how it ends.

    Raises:
        RequestError: TF_CONFIG is wrong, or the workers differ.
        LostWorkerError: Somebody did not come in time.
        Interrupted: A signal was received.
    """
    if config.strategy != "multi_worker_mirrored":
        # TensorFlow reads it for other strategies too, and fails where it is no JSON.
        if os.environ.pop("TF_CONFIG", "").strip():
            console.say(
                f"TF_CONFIG is not used: --strategy={config.strategy} takes this machine alone; "
                "several machines need multi_worker_mirrored"
            )
        yield membership.alone()
        return
    cluster = read_cluster(os.environ)
    token = rendezvous.read_token(os.environ)
    if not token and not all(_is_loopback(address) for address in cluster.addresses):
        console.say(
            f"warning: no {rendezvous.TOKEN}: whoever reaches {cluster.addresses[0]} can join"
        )
    with interrupts.caught():
        members = rendezvous.join(
            cluster,
            identity={
                "version of": identity.versions(),
                "digest of": identity.code(getattr(config, "model", None) or ""),
                "setting": _settings(config),
            },
            token=token,
            timeout=config.join_timeout,
            say=console.say,
        )
    with filtered() if not config.verbosity else contextlib.nullcontext(), members:
        yield members


def _settings(config: Settings) -> dict[str, Any]:
    own = config.names(on_resume="ignored") | _OF_ONE_PROCESS
    return {name: value for name, value in config.to_json().items() if name not in own}


def _is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
