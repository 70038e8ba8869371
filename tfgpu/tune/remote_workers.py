"""Workers for a search whose chief is a process on another machine."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from tfgpu.cli import interrupts
from tfgpu.cli.console import Console
from tfgpu.errors import Interrupted, RequestError
from tfgpu.tune import address, devices, search_directory
from tfgpu.tune.chief import ATTEMPTS
from tfgpu.tune.search_directory import SEARCH
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.space import DEFAULT, Space
from tfgpu.tune.worker_pool import POLL_SECONDS, WorkerPool, describe_exit


def train(
    config: TuneSettings, role: address.Role, console: Console, signals: interrupts.Interrupts
) -> None:
    """Trains trials for the chief until it has no more of them.

    Raises:
        tfgpu.errors.Error: The request or the data is at fault, or a worker keeps dying.
    """
    if config.run_dir is None:
        raise RequestError(
            "--run_dir is missing: name the directory of the chief's search, which all machines "
            "have to see"
        )
    if config.workers == 0:
        raise RequestError("--workers=0 leaves nothing to do here; only the chief can do without")
    # The default is the task's, and so is known to whoever has the data.
    space = None if config.space == DEFAULT else Space.load(config.space)
    gpus, _ = devices.find(config)
    divided = devices.divide(config.workers, gpus=gpus, cores=devices.usable_cores())
    directory = Path(config.run_dir).expanduser()
    config = dataclasses.replace(config, run_dir=str(directory))
    if not (directory / SEARCH).exists():
        console.say(f"waiting for the chief to begin a search in {directory}")
        while not (directory / SEARCH).exists():
            time.sleep(POLL_SECONDS)
    search_directory.check_same(directory, config, space)
    pool = WorkerPool(role.name, divided, config=config, ip=role.ip, port=role.port)
    console.say(f"training for the search of {role.ip}:{role.port}")
    stopped: list[int] = []
    try:
        with signals.deferred(stopped.append):
            pool.start()
            while pool.active and not stopped:
                time.sleep(POLL_SECONDS)
                for worker, code in pool.exited():
                    if code == 0:  # The search has no more trials.
                        pool.active.discard(worker)
                        continue
                    worker.check_restart(code, attempts=ATTEMPTS)
                    console.say(f"{worker.name} {describe_exit(code)} and is started again")
                    worker.start()
    finally:
        pool.stop()
    if stopped:
        raise Interrupted(stopped[0])
    console.say("the search has no more trials for this machine, or was stopped")
