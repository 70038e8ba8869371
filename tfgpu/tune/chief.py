"""The chief of a search: a gRPC server that hands out trials, and takes them from dead workers.

It speaks KerasTuner's protocol. KerasTuner's own chief leaves the trial of a worker that died
RUNNING for ever, and waits for it at the end. Here each worker sends a heartbeat every few
seconds; one that is silent for `LEASE` seconds loses its trial to the next worker that asks.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from keras_tuner.engine import trial as trial_module
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.engine import oracle as engine

from tfgpu.errors import RequestError
from tfgpu.tune import address
from tfgpu.tune.oracle import COMPLETED, FAILED, STOPPED

LEASE = 60.0
"""Seconds without a heartbeat after which a worker counts as dead."""

ATTEMPTS = 3
"""Deaths of its worker after which a trial counts as failed."""

MAX_FAILURES = 3
"""Consecutive failed trials that end the search."""

SENDER = "tfgpu-worker"
PROCESS = "tfgpu-process"
TRIAL = "tfgpu-trial"
REPORT = "tfgpu-report-bin"
"""Metadata keys of a call: the worker that calls, its process, the trial that it trains, and what
`EndTrial` reports beside KerasTuner's own fields."""


class NotOwner(Exception):
    """A worker refers to a trial that belongs to another worker by now."""


class DuplicateName(Exception):
    """Two live processes use the same tuner id."""


@dataclass
class WorkerState:
    """What the chief knows of a worker.

    Attributes:
        name: Its tuner id.
        heard: When it last called, by the chief's clock.
        dismissed: Whether it knows that the search is over.
        process: A unique id of its process; empty while unknown.
        former: Ids of the processes that had the name before.
    """

    name: str
    heard: float
    dismissed: bool = False
    process: str = ""
    former: set[str] = field(default_factory=set)


@dataclass
class Chief:
    """The oracle of a search and the server that workers ask for trials.

    Attributes:
        oracle: One of `tfgpu.tune.oracle`.
        clock: Gives seconds; for tests.
        port: Where it listens, once started.
        workers: By tuner id.
        closing: Whether no more trials are handed out.
        stopping: Whether workers are told to stop the trials they train.
        exhausted: Whether the oracle has no more trials.
        failures: Consecutive failed trials, in this process.
        error: What went wrong in the oracle; None when nothing did.
    """

    oracle: Any
    clock: Callable[[], float] = time.monotonic
    port: int = 0
    workers: dict[str, WorkerState] = field(default_factory=dict)
    closing: bool = False
    stopping: bool = False
    exhausted: bool = False
    failures: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._server: grpc.Server | None = None
        self._attempts: dict[str, int] = {}
        self._checked_at = self.clock()

    def start(self, ip: str, port: int) -> None:
        """Starts the server.

        Args:
            ip: Of this machine.
            port: 0 for any that is free.

        Raises:
            RequestError: The port cannot be had.
        """
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8, thread_name_prefix="chief"),
            # By default two searches could listen on one port, and get each other's workers.
            options=(("grpc.so_reuseport", 0),),
        )
        protos.get_service_grpc().add_OracleServicer_to_server(_Servicer(self), server)
        bound = 0
        with contextlib.suppress(RuntimeError):
            bound = server.add_insecure_port(address.target(ip, port))
        if not bound:
            raise address.taken(ip, port) if port else RequestError(f"no free port at {ip}")
        server.start()
        self._server, self.port = server, bound

    def notify_stop(self, ignoring: Collection[str], *, seconds: float) -> None:
        """Tells the workers that the search stops, and waits until they have heard it.

        Args:
            ignoring: Names of workers that need not be waited for.
            seconds: To wait at most.
        """
        self.stopping = True
        until = self.clock() + seconds
        while self.clock() < until and not self.all_notified(silence=seconds, ignoring=ignoring):
            time.sleep(0.1)

    def all_notified(self, *, silence: float = LEASE, ignoring: Collection[str] = ()) -> bool:
        """Whether every worker knows that the search is over.

        Args:
            silence: Seconds without a heartbeat after which a worker counts as gone.
            ignoring: Names of workers that do not matter.
        """
        with self._lock:
            now = self.clock()
            return all(
                worker.dismissed or worker.name in ignoring or now - worker.heard > silence
                for worker in self.workers.values()
            )

    def close(self) -> None:
        """Stops the server and puts the running trials back into the queue."""
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
            self._server = None
        with self.locked_oracle() as oracle:
            for name in list(oracle.ongoing_trials):
                oracle.requeue(name)
            oracle.save()

    @contextlib.contextmanager
    def locked_oracle(self) -> Iterator[Any]:
        """Locks the oracle for this thread."""
        with self._lock:
            try:
                yield self.oracle
            except NotOwner:
                raise
            except Exception as error:
                self.error = error
                self.closing = True
                # KerasTuner does not release its lock after an exception: the next call would hang.
                if engine.THREADS[self.oracle] is not None:
                    engine.THREADS[self.oracle] = None
                    engine.LOCKS[self.oracle].release()
                raise

    def heartbeat(self, name: str, process: str = "") -> None:
        """Notes that a worker is alive.

        Args:
            name: Its tuner id.
            process: A unique id of its process.

        Raises:
            DuplicateName: Another process has taken the name since, and this one is still alive.
        """
        with self._lock:
            worker = self.workers.setdefault(name, WorkerState(name, 0.0))
            if process in worker.former:
                raise DuplicateName(
                    f"two processes are called {name!r}; give each machine a {address.TUNER_ID} "
                    "of its own"
                )
            worker.heard = self.clock()
            if process and process != worker.process:
                worker.former |= {worker.process} - {""}
                worker.process = process

    def owns(self, name: str, trial_id: str) -> bool:
        """Whether a trial still belongs to a worker."""
        with self._lock:
            held = self.oracle.ongoing_trials.get(name)
            return held is not None and held.trial_id == trial_id

    def next_trial(self, name: str) -> trial_module.Trial:
        """Returns a trial for a worker: its own again if it was restarted."""
        with self.locked_oracle() as oracle:
            self.heartbeat(name)
            lost = oracle.ongoing_trials.get(name)
            if lost is not None:
                self._count_death(lost.trial_id, name)
            if self.closing or self.stopping:
                return self._dismiss(name)
            trial = oracle.create_trial(name)
            if trial.status == STOPPED:
                self.exhausted = True
                return self._dismiss(name)
            if trial.trial_id in oracle.trials:
                record = oracle.records.setdefault(trial.trial_id, {})
                record["worker"] = name
                record.setdefault("started", time.time())
            return trial

    def _dismiss(self, name: str) -> trial_module.Trial:
        self.workers[name].dismissed = True
        return trial_module.Trial(self.oracle.get_space(), status=STOPPED)

    def progress(
        self, trial_id: str, metrics: dict[str, float], step: int, *, sender: str
    ) -> trial_module.Trial:
        """Records the metrics of an epoch.

        Raises:
            NotOwner: The trial belongs to another worker.
        """
        with self.locked_oracle() as oracle:
            self._check_owner(sender, trial_id)
            trial = oracle.update_trial(trial_id, metrics, step=step)
            oracle.records.setdefault(trial_id, {}).update(epochs=step, metrics=dict(metrics))
            return trial

    def _check_owner(self, sender: str, trial_id: str) -> None:
        if not self.owns(sender, trial_id):
            raise NotOwner(f"trial {trial_id} is another worker's by now")

    def end(
        self, trial: trial_module.Trial, report: dict[str, Any], *, sender: str | None = None
    ) -> None:
        """Ends a trial.

        Args:
            trial: With its new status, `COMPLETED` or `FAILED`.
            report: `score`, `reason`, `seconds` and more.
            sender: The worker that ends it; None for the chief itself.

        Raises:
            NotOwner: The trial belongs to another worker.
        """
        with self.locked_oracle() as oracle:
            if sender is not None:
                self._check_owner(sender, trial.trial_id)
            record = oracle.records.setdefault(trial.trial_id, {})
            record.update(report, ended=time.time())
            trial.message = record.get("reason")
            # The protocol has rounded the floats and reordered the hyperparameters.
            trial.hyperparameters = oracle.trials[trial.trial_id].hyperparameters
            oracle.end_trial(trial)
            ended = oracle.trials[trial.trial_id]
            if ended.status == COMPLETED:
                self.failures = 0
            else:
                self.failures += 1
                record.setdefault("reason", f"{oracle.objective.name} is not a number")
                if self.failures >= MAX_FAILURES:
                    self.closing = True

    def reclaim_silent(self) -> list[str]:
        """Takes their trials from workers that send no heartbeats.

        Returns:
            The workers' tuner ids.
        """
        with self.locked_oracle() as oracle:
            now = self.clock()
            if now - self._checked_at > LEASE / 4:
                # This process itself was paused, by Ctrl-Z or a blocked terminal.
                for worker in self.workers.values():
                    worker.heard = now
            self._checked_at = now
            silent = [
                name for name in oracle.ongoing_trials if now - self.workers[name].heard > LEASE
            ]
            for name in silent:
                trial_id = oracle.ongoing_trials[name].trial_id
                if self._count_death(trial_id, name, why="was not heard of any more"):
                    oracle.requeue(name)
            return silent

    def worker_died(self, name: str, why: str) -> None:
        """Takes its trial from a worker of this machine whose process has ended.

        Args:
            name: Its tuner id.
            why: Such as "was killed by SIGKILL".
        """
        with self.locked_oracle() as oracle:
            lost = oracle.ongoing_trials.get(name)
            if lost is not None and self._count_death(lost.trial_id, name, why=why):
                oracle.requeue(name)

    def _count_death(self, trial_id: str, name: str, why: str = "was started again") -> bool:
        """Counts a worker that died with a trial; the last of `ATTEMPTS` ends the trial.

        Returns:
            Whether the trial is to be tried again.
        """
        attempts = self._attempts[trial_id] = self._attempts.get(trial_id, 0) + 1
        if attempts < ATTEMPTS:
            return True
        trial = self.oracle.trials[trial_id]
        trial.status = FAILED
        self.end(trial, {"reason": f"its worker {why}, {attempts} times", "worker": name})
        return False


class _Servicer(OracleServicer):
    """KerasTuner's gRPC service; every call goes through the chief."""

    def __init__(self, chief: Chief):
        super().__init__(chief.oracle)
        self._chief = chief

    def GetSpace(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context), self._chief.locked_oracle():
            return super().GetSpace(request, context)

    def UpdateSpace(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context), self._chief.locked_oracle():
            return super().UpdateSpace(request, context)

    def CreateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context):
            trial = self._chief.next_trial(request.tuner_id)
            return protos.get_service().CreateTrialResponse(trial=trial.to_proto())

    def UpdateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context) as sender:
            self._check_stopping(context, sender)
            trial = self._chief.progress(
                request.trial_id, dict(request.metrics), int(request.step), sender=sender
            )
            return protos.get_service().UpdateTrialResponse(trial=trial.to_proto())

    def EndTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context) as sender:
            trial = trial_module.Trial.from_proto(request.trial)
            metadata = dict(context.invocation_metadata())
            self._chief.end(trial, json.loads(metadata.get(REPORT, b"{}")), sender=sender)
            return protos.get_service().EndTrialResponse()

    def GetTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._caller(context), self._chief.locked_oracle():
            return super().GetTrial(request, context)

    def GetBestTrials(self, request: Any, context: grpc.ServicerContext) -> Any:
        # The heartbeat: KerasTuner has no call for it, and workers do not use this one otherwise.
        with self._caller(context) as sender:
            self._check_stopping(context, sender)
            held = dict(context.invocation_metadata()).get(TRIAL)
            if held:
                with self._chief.locked_oracle():
                    self._chief._check_owner(sender, held)
            return protos.get_service().GetBestTrialsResponse()

    @contextlib.contextmanager
    def _caller(self, context: grpc.ServicerContext) -> Iterator[str]:
        metadata = dict(context.invocation_metadata())
        sender = metadata.get(SENDER, "")
        try:
            if sender:
                self._chief.heartbeat(sender, metadata.get(PROCESS, ""))
            yield sender
        except DuplicateName as error:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except NotOwner as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def _check_stopping(self, context: grpc.ServicerContext, sender: str) -> None:
        if self._chief.stopping:
            if sender:
                self._chief.workers[sender].dismissed = True
            context.abort(grpc.StatusCode.CANCELLED, "the search stops")
