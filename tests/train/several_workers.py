"""Real processes on loopback that train together, and what has to be the same in their runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import tfgpu


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


class Ended(NamedTuple):
    """How a process ended: exit code, seconds since it was waited for, what it said."""

    code: int
    seconds: float
    out: str
    err: str


class Workers:
    """Processes of one command line, each with a folder of its own: no disk is shared.

    Attributes:
        processes: By rank.
        addresses: By rank.
        path: The run directory, which the chief alone writes.
    """

    def __init__(
        self,
        place: Path,
        path: Path,
        flags: list[str],
        *,
        count: int = 2,
        command: str = "train",
        addresses: list[str] | None = None,
        changes: dict[int, dict[str, Any] | None] | None = None,
        before: dict[int, list[str]] | None = None,
    ):
        """Starts them.

        Args:
            place: The user's folder, with images and models.
            path: The chief's run directory; others are named beside it and never made.
            flags: Of the command.
            count: How many.
            command: Which.
            addresses: In TF_CONFIG; free ones by default.
            changes: By rank: "flags" in the place of `flags`, "index" and "addresses" in the place
                of the right ones, more "env"; None starts none.
            before: By rank, the words of a command that runs its arguments.
        """
        self.path = path
        self.addresses = addresses or free_addresses(count)
        self.processes: dict[int, subprocess.Popen[str]] = {}
        for rank in range(count):
            change = (changes or {}).get(rank, {})
            if change is None:
                continue
            own = path if rank == 0 else path.with_name(f"{path.name}-of-{rank}")
            cluster = {
                "cluster": {"worker": change.get("addresses", self.addresses)},
                "task": {"type": "worker", "index": change.get("index", rank)},
            }
            environment = os.environ | {
                "PYTHONPATH": str(Path(tfgpu.__file__).parents[1]),
                "TF_CONFIG": json.dumps(cluster),
                "TFGPU_CLUSTER_TOKEN": "of the tests",
            }
            argv = [
                *(before or {}).get(rank, []),
                *(sys.executable, "-m", f"tfgpu.{command}", "--strategy=multi_worker_mirrored"),
                *(f"--run_dir={own}", *change.get("flags", flags)),
            ]
            self.processes[rank] = subprocess.Popen(
                argv,
                cwd=place,
                env=environment | change.get("env", {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait_until(self, text: str, *, timeout: float = 120) -> None:
        """Waits until the chief's log has a text."""
        end = time.monotonic() + timeout
        log = self.path / "log.txt"
        while time.monotonic() < end:
            if log.exists() and text in log.read_text():
                return
            assert all(p.poll() is None for p in self.processes.values()), self.ends()
            time.sleep(0.005)
        raise AssertionError(f"{text!r} was not said within {timeout} s")

    def ends(self, *, timeout: float = 120) -> dict[int, Ended]:
        """Waits for the end of all of them; what does not end is killed, with code -9."""
        began, ended = time.monotonic(), {}

        def wait(rank: int, process: subprocess.Popen[str]) -> None:
            out, err = process.communicate()
            ended[rank] = Ended(process.returncode, time.monotonic() - began, out, err)

        threads = [
            threading.Thread(target=wait, args=item, daemon=True) for item in self.processes.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, began + timeout - time.monotonic()))
        for process in self.processes.values():
            process.kill()
        for thread in threads:
            thread.join(10)
        return ended

    def finish(self, *, timeout: float = 240) -> dict[int, Ended]:
        """Waits for a good end of all of them."""
        ended = self.ends(timeout=timeout)
        assert all(end.code == 0 and end.err == "" for end in ended.values()), ended
        return ended


def outcome(path: Path) -> dict[str, Any]:
    """What two runs that are the same have in common, to the bit."""
    import keras

    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["samples_per_second"], row["seconds"]
    digest = hashlib.sha256()
    for weight in keras.models.load_model(path / "model.keras").get_weights():
        digest.update(weight.tobytes())
    result = json.loads((path / "result.json").read_text())
    return {
        "metrics": rows,
        "weights": digest.hexdigest(),
        "test": (result["test_loss"], result["test_accuracy"]),
        "steps": result["steps"],
    }


def remove(path: Path) -> None:
    """Removes a run."""
    shutil.rmtree(path, ignore_errors=True)
