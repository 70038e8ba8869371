"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence

from tfgpu.errors import RequestError
from tfgpu.launch import output, ports, shares, supervise, worker
from tfgpu.launch.command import Command, with_run_dir
from tfgpu.launch.settings import LaunchSettings

_HOST = "127.0.0.1"
_PORTS_TRIED = 3
"""How often ports are chosen anew, when another program took one before its worker could."""


def run(config: LaunchSettings, command: Command) -> None:
    """Starts workers on this machine and waits for them.

    Args:
        config: The settings of the launch.
        command: What each worker runs.

    Raises:
        tfgpu.errors.Error: The request is wrong, a worker failed, or a signal was received.
    """
    if sys.platform == "win32":
        raise RequestError("--backend=local needs Linux or macOS; on Windows use WSL2")
    count = config.workers or 1
    gpus = [] if command.on_cpu else shares.visible_gpus()
    if count > 1 and command.devices.startswith("GPU"):
        raise RequestError(
            f"--devices={command.devices} and --workers={count} exclude each other: each worker "
            "has its own GPUs; choose among them by CUDA_VISIBLE_DEVICES"
        )
    gpu_shares = shares.gpu_shares(gpus, count, each=None if command.on_cpu else config.gpus)
    core_shares = shares.core_shares(shares.usable_cores(), count)
    supervise.say(_described(count, gpu_shares, core_shares))
    with with_run_dir(command) as placed:
        workers = LocalWorkers(placed, gpus=gpu_shares, cores=core_shares)
        supervise.run(
            workers,
            max_restarts=config.max_restarts,
            resume=placed.continued_by(config),
            start_again=workers.lost_a_port,
        )


def _described(count: int, gpus: Sequence[str | None], cores: Sequence[Sequence[int]]) -> str:
    text = f"{count} worker{'s' if count > 1 else ''} on this machine"
    each = len(cores[0])
    text += f", {each} core{'s' if each > 1 else ''} each" if each else ", all on the same cores"
    if gpus[0]:
        number = len(gpus[0].split(","))
        text += f", {number} GPU{'s' if number > 1 else ''} each"
    return text


class LocalWorkers:
    """Processes of this machine; see `supervise.Workers`."""

    def __init__(
        self,
        command: Command,
        *,
        gpus: Sequence[str | None],
        cores: Sequence[Sequence[int]],
    ):
        self._command = command
        self._gpus, self._cores = gpus, cores
        self._token = secrets.token_hex(16)
        self._ports: list[int] = []
        self._ports_tried = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._lines: dict[int, tuple[output.PrefixedLines, output.PrefixedLines]] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def count(self) -> int:
        """See `supervise.Workers`."""
        return len(self._gpus)

    def start(self, *, again: bool, asked: Sequence[int]) -> None:
        """See `supervise.Workers`."""
        self._ports = ports.free_ports(self.count)
        self._ports_tried += 1
        addresses = [f"{_HOST}:{port}" for port in self._ports]
        command = self._command.again() if again else self._command
        for index in range(self.count):
            process = subprocess.Popen(
                worker.child_command_line(command.argv, self._cores[index]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=worker.environment(
                    addresses=addresses,
                    index=index,
                    token=self._token,
                    gpus=self._gpus[index],
                ),
                # Ctrl-C goes to this process alone, which passes it on once.
                start_new_session=True,
            )
            self._processes[index] = process
            self._lines[index] = output.pair(index, sys.stdout.buffer, sys.stderr.buffer)
            pipes = (process.stdout, process.stderr)
            for pipe, lines in zip(pipes, self._lines[index], strict=True):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ, lines)

    def poll(self, seconds: float) -> list[supervise.Ended]:
        """See `supervise.Workers`."""
        for key, _ in self._selector.select(seconds):
            self._read(key)
        ended = []
        for index, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                self._close(index)
                ended.append(supervise.Ended(index, code))
        return ended

    def send(self, number: int) -> None:
        """See `supervise.Workers`."""
        for process in self._processes.values():
            process.send_signal(number)

    def kill(self) -> None:
        """See `supervise.Workers`."""
        self.send(signal.SIGKILL)
        for index, process in list(self._processes.items()):
            process.wait()
            # When nobody reads any more, it is all the same.
            with contextlib.suppress(BrokenPipeError):
                self._close(index)

    def lost_a_port(self) -> bool:
        """Tells whether another program took a port before its worker could, for a few times.

        All workers have ended.
        """
        if self._ports_tried >= _PORTS_TRIED or all(map(ports.is_free, self._ports)):
            return False
        supervise.say("another program took a port of a worker: trying others")
        return True

    def _read(self, key: selectors.SelectorKey) -> None:
        """Passes on what a pipe holds now."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(key.fd, 1 << 16):
                key.data.feed(data)
            self._selector.unregister(key.fileobj)  # Its end.

    def _close(self, index: int) -> None:
        """Passes on what an ended worker has said last."""
        process = self._processes.pop(index)
        for pipe, lines in zip(
            (process.stdout, process.stderr), self._lines.pop(index), strict=True
        ):
            assert pipe is not None
            with contextlib.suppress(KeyError):
                self._read(self._selector.get_key(pipe))
            with contextlib.suppress(KeyError):
                # A process that the worker left behind holds it open.
                self._selector.unregister(pipe)
            lines.close()
            pipe.close()
