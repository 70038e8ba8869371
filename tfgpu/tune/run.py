"""`tfgpu tune` from beginning to end: check the request, open the search, search, conclude."""

from __future__ import annotations

import os
import time
from typing import Any

from tfgpu import trackers
from tfgpu.cli import interrupts
from tfgpu.cli.console import Console
from tfgpu.data import preparation
from tfgpu.errors import RequestError, WorkError
from tfgpu.tune import address, dry_run, final, remote_workers, search_directory
from tfgpu.tune.chief import ATTEMPTS, MAX_FAILURES, Chief
from tfgpu.tune.client import HEARTBEAT
from tfgpu.tune.oracle import FAILED
from tfgpu.tune.search import Search
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.tracking import tracked
from tfgpu.tune.trials_table import TrialsTable
from tfgpu.tune.worker_pool import POLL_SECONDS, RESTART, Worker, WorkerPool, describe_exit

_SAVE_SECONDS = 10.0  # Seconds between two saves of the time that the search has taken.


def run(config: TuneSettings, *, console: Console) -> dict[str, Any]:
    """Searches, retrains the best settings and sums up.

    Args:
        config: The settings.
        console: Where messages go.

    Returns:
        The contents of `result.json`; {} on a machine that only trains for another's search.

    Raises:
        tfgpu.errors.Error: The request, the data or the work is at fault.
    """
    with interrupts.caught() as signals, preparation.in_passing(config.dry_run):
        role = address.read(os.environ)
        if not role.chief:
            remote_workers.train(config, role, console, signals)
            return {}
        if config.workers == 0 and role.alone:
            raise RequestError(
                f"--workers=0 leaves nobody to train; it goes with {address.TUNER_ID} and its "
                "companions, where other machines do"
            )
        address.check_free(role)
        trackers.check(config.log_to)
        search = Search.open(config, console=console)
        if config.dry_run:
            console.say(dry_run.describe(config, search))
            return {}
        with search, tracked(search):
            if (finished := search.finished_result()) is not None:
                console.say(f"{search.directory} holds this search, finished")
                console.say(final.summary(finished, search.directory))
                return finished
            _search(search, role, signals)
            return final.conclude(search, signals)


def _search(search: Search, role: address.Role, signals: interrupts.Interrupts) -> None:
    """Hands out trials until there are no more, or no more time."""
    search.start_clock()
    oracle, console, config = search.oracle, search.console, search.config
    chief = Chief(oracle)
    chief.start(role.ip, role.port)
    pool = WorkerPool(role.name, search.worker_devices, config=config, ip=role.ip, port=chief.port)
    if known := len(oracle.trials):
        pending = len(oracle.pending)
        console.say(
            f"continuing the search in {search.directory}: {known} trials"
            + (f", {pending} of them to be gone on with" if pending else "")
        )
    table = TrialsTable(console, search.objective)
    table.mark_shown(oracle)
    stopped: list[int] = []
    try:
        with table, signals.deferred(stopped.append):
            pool.start()
            _watch(search, chief, pool, table, stopped)
    finally:
        chief.stopping = True
        pool.stop()
        oracle.seconds = search.seconds
        # Workers on other machines hear of it with their next heartbeat.
        chief.notify_stop(pool.workers.keys(), seconds=2 * HEARTBEAT)
        chief.close()
        search_directory.write_trials(search.directory, oracle, objective=search.objective)
    if stopped:
        raise search.interrupted(stopped[0])
    if chief.failures >= MAX_FAILURES:
        failed = [name for name in oracle.end_order if oracle.trials[name].status == FAILED]
        reason = oracle.records.get(failed[-1], {}).get("reason") if failed else "unknown"
        raise WorkError(
            f"{MAX_FAILURES} trials on end have failed, the last: {reason}; mend it and continue "
            f"with: {search.resume_command}"
        )


def _watch(
    search: Search, chief: Chief, pool: WorkerPool, table: TrialsTable, stopped: list[int]
) -> None:
    """Restarts workers, shows and saves the trials, until the search ends or is stopped."""
    saved = time.monotonic()
    written = -1
    warned = False
    while True:
        time.sleep(POLL_SECONDS)
        if chief.error is not None:
            raise WorkError(
                f"the search broke: {type(chief.error).__name__}: {chief.error}"
            ) from chief.error
        for worker, code in pool.exited():
            _handle_exit(worker, code, search, chief, pool)
        for name in chief.reclaim_silent():
            # Stopped or stuck; its trial goes to another worker.
            if name in pool.workers:
                pool.workers[name].kill()
        with chief.locked_oracle() as oracle:
            table.show(oracle, left=search.seconds_left)
            ended = len(oracle.end_order)
            now = time.monotonic()
            if ended != written:
                written = ended
                search_directory.write_trials(search.directory, oracle, objective=search.objective)
            if now - saved > _SAVE_SECONDS:
                saved = now
                oracle.seconds = search.seconds
                oracle.save()
            ongoing = len(oracle.ongoing_trials)
            error = oracle.save_error
        if error is not None and not warned:
            search.console.say(
                f"warning: {error.strerror} while writing {error.filename}; the search goes on "
                "and tries again"
            )
        warned = error is not None
        if stopped:
            return
        if search.seconds_left is not None and search.seconds_left <= 0:
            search.console.say(f"the {search.config.max_minutes:g} minutes are over")
            return
        no_more = chief.exhausted or chief.closing
        if no_more and not ongoing and not pool.active and chief.all_notified():
            return


def _handle_exit(worker: Worker, code: int, search: Search, chief: Chief, pool: WorkerPool) -> None:
    """Restarts a worker whose process has ended, unless it has nothing left to do.

    Raises:
        tfgpu.errors.Error: Another start would end in the same way.
    """
    state = chief.workers.get(worker.name)
    if code == 0 or (state is not None and state.dismissed):
        pool.active.discard(worker)
        return
    trials_ended = len(chief.oracle.end_order)
    worker.check_restart(code, trials_ended=trials_ended, attempts=ATTEMPTS)
    if code != RESTART:
        how = describe_exit(code)
        chief.worker_died(worker.name, how)
        search.console.say(f"{worker.name} {how} and is started again: {worker.last_words()}")
    worker.start()
