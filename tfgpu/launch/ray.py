"""Workers on the nodes of a Ray cluster: an actor for each starts it as a process of its node.

Ray's own TensorFlow trainer would import the model into Ray's processes, under tf.keras of old.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tfgpu.cli import interrupts
from tfgpu.errors import Interrupted, RequestError, WorkError
from tfgpu.launch import output, shares, supervise, worker
from tfgpu.launch.command import Command, with_run_dir
from tfgpu.launch.settings import LaunchSettings

_ADDRESS = "RAY_ADDRESS"
_JOIN_SECONDS = 600
_SAY_SECONDS = 5.0
_NODES = "the nodes of the Ray cluster"
_ROOM = "room on the Ray cluster"
# The process that starts the workers passes these on, with TF_CONFIG and the token aside.
_PASSED_ON = ("TF_", "TFDS_", "TFGPU_", "KERAS_", "XLA_", "NCCL_")


def run(config: LaunchSettings, command: Command) -> None:
    """Starts workers on a Ray cluster and waits for them.

    Args:
        config: The settings of the launch.
        command: What each worker runs.

    Raises:
        tfgpu.errors.Error: The request is wrong, a worker failed, or a signal was received.
    """
    with interrupts.caught(), _connected():
        bundle, strategy = _bundle(config, on_cpu=command.on_cpu)
        with with_run_dir(command) as placed:
            workers = RayWorkers(
                placed,
                count=config.workers or 1,
                bundle=bundle,
                strategy=strategy,
                join_seconds=config.join_timeout or _JOIN_SECONDS,
            )
            try:
                supervise.run(
                    workers,
                    max_restarts=config.max_restarts,
                    resume=placed.continued_by(config),
                )
            finally:
                workers.remove()


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connects to the cluster, or starts one of this machine alone where there is none."""
    address = os.environ.get(_ADDRESS)
    if address and address.startswith("ray://"):
        raise RequestError(
            f"{_ADDRESS}={address}: a launch runs inside the cluster; start it on one of its "
            "nodes, or by `ray job submit`"
        )
    if address and not _answers(address):
        raise RequestError(
            f"{_ADDRESS}={address}: nothing answers there; name the address that `ray start` "
            "printed, or unset it for a cluster of this machine alone"
        )
    # Where this process starts a cluster, it is nobody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
        supervise.say(f"on the Ray cluster at {ray.get_runtime_context().gcs_address}")
    except ConnectionError as error:
        if address:
            raise RequestError(
                f"{_ADDRESS}={address}: there is no Ray cluster that can be reached; correct it, "
                "or unset it for one of this machine alone"
            ) from error
        ray.init(address="local", include_dashboard=False, **quiet)
        supervise.say("on a Ray cluster of this machine alone: no other was found")
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Tells whether something listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto" or address == "local":
        return True
    if not port.isdecimal():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return True
    except (OSError, OverflowError):
        return False


def _bundle(config: LaunchSettings, *, on_cpu: bool) -> tuple[dict[str, float], str]:
    """What each worker asks of its node, and how the workers are placed.

    Raises:
        RequestError: The cluster has too little.
    """
    workers = config.workers or 1
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]
    if not nodes:
        raise RequestError("--backend=ray: no node of the cluster has a free CPU; add one")
    each = -(-workers // len(nodes))  # Workers of a node, at most.
    gpus = config.gpus
    if gpus is None:
        gpus = 0 if on_cpu else int(min(node.get("GPU", 0) for node in nodes)) // each
    cpus = config.cpus or max(1, int(min(node["CPU"] for node in nodes)) // each)
    room = sum(
        min(int(n["CPU"] // cpus), int(n.get("GPU", 0) // gpus) if gpus else workers) for n in nodes
    )
    if room < workers:
        of_each = f"{cpus} CPU" + (f" and {gpus} GPU" if gpus else "")
        raise RequestError(
            f"--workers={workers}: the Ray cluster has room for {room} with {of_each} each; start "
            "fewer, ask for less by --cpus and --gpus, or add nodes"
        )
    bundle: dict[str, float] = {"CPU": cpus}
    if gpus:
        bundle["GPU"] = gpus
    return bundle, "STRICT_SPREAD" if 1 < workers <= len(nodes) else "PACK"


class RayWorkers:
    """Processes that actors start on their nodes; see `supervise.Workers`."""

    def __init__(
        self,
        command: Command,
        *,
        count: int,
        bundle: Mapping[str, float],
        strategy: str,
        join_seconds: float,
    ):
        self.count = count
        self._command = command
        self._bundle, self._strategy = dict(bundle), strategy
        self._join_seconds = join_seconds
        self._token = secrets.token_hex(16)
        # Kept over restarts, so that a worker comes back to the node that has its files.
        self._group: Any = None
        self._actors: dict[int, Any] = {}
        self._reads: dict[Any, int] = {}
        self._lines: dict[int, tuple[output.PrefixedLines, output.PrefixedLines]] = {}

    def start(self, *, again: bool, asked: Sequence[int]) -> None:
        """See `supervise.Workers`."""
        began = time.monotonic()
        if self._group is None:
            self._group = placement_group([self._bundle] * self.count, strategy=self._strategy)
        while True:
            self._wait_for_room(began, asked)
            self._actors = self._new_actors()
            reserved = [actor.reserve.remote() for actor in self._actors.values()]
            try:
                reserved = _wait_for(reserved, began + self._join_seconds, asked, _NODES)
                break
            except ray.exceptions.RayError as error:
                # A node that is gone may not be known to be gone yet.
                if not again or time.monotonic() > began + self._join_seconds:
                    lines = str(error).strip().splitlines()
                    raise WorkError(
                        "Ray could not start a worker: "
                        f"{lines[-1] if lines else type(error).__name__}; each node needs "
                        "'tfgpu[ray]' in the same version"
                    ) from error
                self.kill()
                time.sleep(1.0)
        addresses = [f"{ip}:{port}" for _, ip, port, _ in reserved]
        argv = (self._command.again() if again else self._command).argv
        passed_on = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
        on_node = Counter(node for node, *_ in reserved)
        before: Counter[str] = Counter()
        started = []
        for index, (node, _, _, cores) in enumerate(reserved):
            share = shares.core_shares(cores, on_node[node])[before[node]]
            before[node] += 1
            place = {"addresses": addresses, "index": index, "token": self._token}
            started.append(
                self._actors[index].start.remote(argv, place, share, passed_on, os.getcwd())
            )
        problems = _wait_for(started, began + self._join_seconds, asked, _NODES)
        for index, problem in enumerate(problems):
            if problem is not None:
                raise RequestError(f"worker {index} at {addresses[index]}: {problem}")
        for index, address in enumerate(addresses):
            supervise.say(f"worker {index} is at {address}")
            self._lines[index] = output.pair(index, sys.stdout.buffer, sys.stderr.buffer)
            self._reads[self._actors[index].read.remote()] = index

    def _wait_for_room(self, began: float, asked: Sequence[int]) -> None:
        """Waits until each worker has its place on a node; a lost one has to be found anew."""
        deadline = began + self._join_seconds
        _wait_for([self._group.ready()], deadline, asked, _ROOM)
        said = time.monotonic()
        while placement_group_table(self._group)["state"] != "CREATED":
            said = _still_waiting(said, deadline, asked, f"{_ROOM}, after a node was lost")
            time.sleep(0.2)

    def _new_actors(self) -> dict[int, Any]:
        options = {
            "num_cpus": self._bundle["CPU"],
            "num_gpus": self._bundle.get("GPU", 0),
            "max_restarts": 0,
            # It answers while it waits for what its process says.
            "max_concurrency": 4,
        }
        actor = ray.remote(Host)
        actors = {}
        for index in range(self.count):
            at = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            actors[index] = actor.options(**options, scheduling_strategy=at).remote()
        return actors

    def poll(self, seconds: float) -> list[supervise.Ended]:
        """See `supervise.Workers`."""
        if not self._reads:
            return []
        ready, _ = ray.wait(list(self._reads), timeout=seconds)
        ended = []
        for reference in ready:
            index = self._reads.pop(reference)
            try:
                said, code = ray.get(reference)
            except ray.exceptions.RayError:
                self._actors.pop(index)
                why = "was lost, with its node or Ray's process there"
                ended.append(supervise.Ended(index, -signal.SIGKILL, why))
                continue
            for stream, data in said:
                self._lines[index][stream].feed(data)
            if code is None:
                self._reads[self._actors[index].read.remote()] = index
                continue
            for lines in self._lines.pop(index):
                lines.close()
            ended.append(supervise.Ended(index, code))
        return ended

    def send(self, number: int) -> None:
        """See `supervise.Workers`."""
        for index in self._reads.values():
            self._actors[index].send.remote(number)

    def kill(self) -> None:
        """See `supervise.Workers`."""
        actors, self._actors, self._reads = self._actors, {}, {}
        killed = [actor.kill.remote() for actor in actors.values()]
        if killed:
            ray.wait(killed, num_returns=len(killed), timeout=10.0)
        for actor in actors.values():
            ray.kill(actor)

    def remove(self) -> None:
        """Gives the place of the workers back to the cluster."""
        if self._group is not None:
            remove_placement_group(self._group)


class Host:
    """The actor that starts one worker on its node, and passes on what it says."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._said: queue.SimpleQueue[tuple[int, bytes] | int] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None

    def reserve(self) -> tuple[str, str, int, tuple[int, ...]]:
        """Returns node id, IP address, a free port, and the cores that may be used."""
        # Held until the worker starts, so that no other worker of the node gets the same one.
        self._socket = socket.socket()
        self._socket.bind(("", 0))
        node: str = ray.get_runtime_context().get_node_id()
        address: str = ray.util.get_node_ip_address()
        return node, address, self._socket.getsockname()[1], shares.usable_cores()

    def start(
        self,
        argv: Sequence[str],
        place: Mapping[str, Any],
        cores: Sequence[int],
        passed_on: Mapping[str, str],
        folder: str,
    ) -> str | None:
        """Starts the worker.

        Args:
            argv: The command of tfgpu, and its arguments.
            place: Arguments of `worker.environment`.
            cores: It keeps to; empty for any.
            passed_on: Variables of the process that launches.
            folder: Where it works.

        Returns:
            Why it cannot be started; None when it was.
        """
        if not os.path.isdir(folder):
            return f"{folder} is no folder of this node; start from one that all nodes have"
        os.environ.update(passed_on)
        # Ray's, for its own tasks: as many as the actor has cores, or none.
        os.environ.pop("OMP_NUM_THREADS", None)
        variables = worker.environment(**place)
        assert self._socket is not None
        self._socket.close()
        problem: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def watch() -> None:
            # In a thread that lasts: the worker ends with the one that started it.
            try:
                process = subprocess.Popen(
                    worker.child_command_line(argv, cores),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=variables,
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                problem.put(str(error))
                return
            self._process = process
            problem.put(None)
            readers = [
                threading.Thread(target=self._pass_on, args=(stream, pipe), daemon=True)
                for stream, pipe in enumerate((process.stdout, process.stderr))
            ]
            for reader in readers:
                reader.start()
            code = process.wait()
            for reader in readers:
                # A process that the worker left behind may hold its output open.
                reader.join(timeout=2.0)
            self._said.put(code)

        threading.Thread(target=watch, daemon=True).start()
        return problem.get()

    def _pass_on(self, stream: int, pipe: Any) -> None:
        while data := os.read(pipe.fileno(), 1 << 16):
            self._said.put((stream, data))

    def read(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """Returns what the worker has said since, and its exit code once it has ended.

        Waits up to a second for something.
        """
        said: list[tuple[int, bytes]] = []
        with contextlib.suppress(queue.Empty):
            new = self._said.get(timeout=1.0)
            while True:
                if isinstance(new, int):
                    return said, new
                said.append(new)
                new = self._said.get_nowait()
        return said, None

    def send(self, number: int) -> None:
        """Sends the worker a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the worker, and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _wait_for(
    references: Sequence[Any], deadline: float, asked: Sequence[int], what: str
) -> list[Any]:
    """Waits for results of Ray, and says now and then what for.

    Raises:
        Interrupted: A signal was received.
        WorkError: It took too long.
        ray.exceptions.RayError: A node or an actor failed.
    """
    said = time.monotonic()
    left = list(references)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=0.2)
        if left:
            missing = f"{what}, {len(left)} of {len(references)} missing"
            said = _still_waiting(said, deadline, asked, missing)
    return [ray.get(reference) for reference in references]


def _still_waiting(said: float, deadline: float, asked: Sequence[int], what: str) -> float:
    """Says what is waited for, every few seconds; returns when that was said last."""
    now = time.monotonic()
    if asked:
        raise Interrupted(asked[0])
    if now > deadline:
        raise WorkError(
            f"waited too long for {what}; `ray status` says what it lacks, --join_timeout sets "
            "how long to wait"
        )
    if now - said > _SAY_SECONDS:
        supervise.say(f"waiting for {what}")
        return now
    return said
