"""The chief: hands out trials over KerasTuner's protocol, and takes them back from the dead.

KerasTuner's own chief leaves the trial of a worker that died RUNNING for ever, and waits for it at
the end. Here each worker says every few seconds that it lives; one that has not been heard of for
`LEASE` seconds loses its trial to the next worker that asks.
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
"""Seconds of silence after which a worker is taken for dead."""

ATTEMPTS = 3
"""Times that a trial may take its worker with it before it counts as failed."""

FAILURES = 3
"""Trials that fail on end, and end the search."""

SENDER = "tfgpu-worker"
PROCESS = "tfgpu-process"
HELD = "tfgpu-trial"
REPORT = "tfgpu-report-bin"
"""Metadata of a call: who calls and from which process, which trial it trains, and what `EndTrial`
reports beside KerasTuner's own."""


class NotItsOwn(Exception):
    """A worker speaks of a trial that is another's by now."""


class NameTaken(Exception):
    """Two processes that both live call themselves by one name."""


@dataclass
class Member:
    """A worker as the chief knows it.

    Attributes:
        name: Its tuner id.
        heard: When it was last heard of, by the chief's clock.
        dismissed: Whether it was told that the search is over.
        process: What tells its process from others of that name; empty while unknown.
        former: The processes that had the name before.
    """

    name: str
    heard: float
    dismissed: bool = False
    process: str = ""
    former: set[str] = field(default_factory=set)


@dataclass
class Chief:
    """Oracle and server.

    Attributes:
        oracle: One of `tfgpu.tune.oracle`.
        changed: Called, in any thread, with a trial's id when something about it has changed.
        port: Where it listens, once started.
        members: Workers by tuner id.
        closing: No trial is handed out any more.
        stopping: Workers are told to stop the trials they train.
        over: Whether the oracle has no more trials.
        failures: Trials that have failed on end, in this process.
        error: What went wrong in the oracle; None when nothing did.
    """

    oracle: Any
    changed: Callable[[str], None] = lambda trial_id: None
    clock: Callable[[], float] = time.monotonic
    port: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    closing: bool = False
    stopping: bool = False
    over: bool = False
    failures: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._server: grpc.Server | None = None
        self._attempts: dict[str, int] = {}
        self._looked = self.clock()

    # ---- the server ----------------------------------------------------------------------

    def start(self, ip: str, port: int) -> None:
        """Listens.

        Args:
            ip: Of this machine.
            port: 0 for any that is free.

        Raises:
            RequestError: The port cannot be had.
        """
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8, thread_name_prefix="chief"),
            # Otherwise two searches could share a port, and get each other's workers.
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

    def tell_to_stop(self, names: Collection[str], *, seconds: float) -> None:
        """Waits until workers have been told that the search stops.

        Args:
            names: Of those that need not be waited for.
            seconds: To wait at most.
        """
        self.stopping = True
        until = self.clock() + seconds
        while self.clock() < until and not self.all_told(silence=seconds, but=names):
            time.sleep(0.1)

    def all_told(self, *, silence: float = LEASE, but: Collection[str] = ()) -> bool:
        """Whether every worker knows that the search is over.

        Args:
            silence: Seconds after which a worker counts as gone.
            but: Names of those that do not matter.
        """
        with self._lock:
            now = self.clock()
            return all(
                member.dismissed or member.name in but or now - member.heard > silence
                for member in self.members.values()
            )

    def close(self) -> None:
        """Stops listening and takes back the trials that are under way."""
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
            self._server = None
        with self.held() as oracle:
            for name in list(oracle.ongoing_trials):
                oracle.give_back(name)
            oracle.save()

    @contextlib.contextmanager
    def held(self) -> Iterator[Any]:
        """The oracle, for this thread alone."""
        with self._lock:
            try:
                yield self.oracle
            except NotItsOwn:
                raise
            except Exception as error:
                self.error = error
                self.closing = True
                # KerasTuner keeps its lock after an exception, and the next call waits for ever.
                if engine.THREADS[self.oracle] is not None:
                    engine.THREADS[self.oracle] = None
                    engine.LOCKS[self.oracle].release()
                raise

    # ---- what workers ask ----------------------------------------------------------------

    def hear(self, name: str, process: str = "") -> None:
        """Notes that a worker lives.

        Args:
            name: Its tuner id.
            process: What tells its process from others of that name.

        Raises:
            NameTaken: Another process has begun under that name, and this one still lives.
        """
        with self._lock:
            member = self.members.setdefault(name, Member(name, 0.0))
            if process in member.former:
                raise NameTaken(
                    f"two processes are called {name!r}; give each machine a {address.TUNER_ID} "
                    "of its own"
                )
            member.heard = self.clock()
            if process and process != member.process:
                member.former |= {member.process} - {""}
                member.process = process

    def owns(self, name: str, trial_id: str) -> bool:
        """Whether a trial is still that worker's."""
        with self._lock:
            held = self.oracle.ongoing_trials.get(name)
            return held is not None and held.trial_id == trial_id

    def next_trial(self, name: str) -> trial_module.Trial:
        """A trial for a worker: its own again when it comes back from the dead."""
        with self.held() as oracle:
            self.hear(name)
            lost = oracle.ongoing_trials.get(name)
            if lost is not None:
                self._lost(lost.trial_id, name)
            if self.closing or self.stopping:
                return self._dismiss(name)
            trial = oracle.create_trial(name)
            if trial.status == STOPPED:
                self.over = True
                return self._dismiss(name)
            if trial.trial_id in oracle.trials:
                record = oracle.records.setdefault(trial.trial_id, {})
                record["worker"] = name
                record.setdefault("started", time.time())
                self.changed(trial.trial_id)
            return trial

    def _dismiss(self, name: str) -> trial_module.Trial:
        self.members[name].dismissed = True
        return trial_module.Trial(self.oracle.get_space(), status=STOPPED)

    def progress(
        self, trial_id: str, metrics: dict[str, float], step: int, *, sender: str
    ) -> trial_module.Trial:
        """Notes an epoch's metrics.

        Raises:
            NotItsOwn: The trial is not the sender's.
        """
        with self.held() as oracle:
            self._check_owner(sender, trial_id)
            trial = oracle.update_trial(trial_id, metrics, step=step)
            oracle.records.setdefault(trial_id, {}).update(epochs=step, metrics=dict(metrics))
            self.changed(trial_id)
            return trial

    def _check_owner(self, sender: str, trial_id: str) -> None:
        if not self.owns(sender, trial_id):
            raise NotItsOwn(f"trial {trial_id} is another worker's by now")

    def end(
        self, trial: trial_module.Trial, report: dict[str, Any], *, sender: str | None = None
    ) -> None:
        """Ends a trial.

        Args:
            trial: With its new status, `COMPLETED` or `FAILED`.
            report: `score`, `reason`, `seconds` and more.
            sender: The worker that says so; None for the chief itself.

        Raises:
            NotItsOwn: The trial is not the sender's.
        """
        with self.held() as oracle:
            if sender is not None:
                self._check_owner(sender, trial.trial_id)
            record = oracle.records.setdefault(trial.trial_id, {})
            record.update(report, ended=time.time())
            trial.message = record.get("reason")
            # What comes back has its floats rounded and its hyperparameters in another order.
            trial.hyperparameters = oracle.trials[trial.trial_id].hyperparameters
            oracle.end_trial(trial)
            ended = oracle.trials[trial.trial_id]
            if ended.status == COMPLETED:
                self.failures = 0
            else:
                self.failures += 1
                record.setdefault("reason", f"{oracle.objective.name} is not a number")
                if self.failures >= FAILURES:
                    self.closing = True
            self.changed(trial.trial_id)

    # ---- the dead ------------------------------------------------------------------------

    def look_after(self) -> list[str]:
        """Takes the trials of workers back that have not been heard of.

        Returns:
            Their tuner ids.
        """
        with self.held() as oracle:
            now = self.clock()
            if now - self._looked > LEASE / 4:
                # It was the chief that stood still, by Ctrl-Z or a terminal that takes nothing.
                for member in self.members.values():
                    member.heard = now
            self._looked = now
            silent = [
                name for name in oracle.ongoing_trials if now - self.members[name].heard > LEASE
            ]
            for name in silent:
                trial_id = oracle.ongoing_trials[name].trial_id
                if self._lost(trial_id, name, why="was not heard of any more"):
                    oracle.give_back(name)
            return silent

    def died(self, name: str, why: str) -> None:
        """Notes that a worker of this machine has ended without finishing its trial.

        Args:
            name: Its tuner id.
            why: Such as "was killed by SIGKILL".
        """
        with self.held() as oracle:
            lost = oracle.ongoing_trials.get(name)
            if lost is not None and self._lost(lost.trial_id, name, why=why):
                oracle.give_back(name)

    def _lost(self, trial_id: str, name: str, why: str = "was started again") -> bool:
        """Counts a lost worker; ends a trial that loses every worker.

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
    """KerasTuner's service, by way of the chief."""

    def __init__(self, chief: Chief):
        super().__init__(chief.oracle)
        self._chief = chief

    def GetSpace(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context), self._chief.held():
            return super().GetSpace(request, context)

    def UpdateSpace(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context), self._chief.held():
            return super().UpdateSpace(request, context)

    def CreateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context):
            trial = self._chief.next_trial(request.tuner_id)
            return protos.get_service().CreateTrialResponse(trial=trial.to_proto())

    def UpdateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context) as sender:
            self._check(context, sender)
            trial = self._chief.progress(
                request.trial_id, dict(request.metrics), int(request.step), sender=sender
            )
            return protos.get_service().UpdateTrialResponse(trial=trial.to_proto())

    def EndTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context) as sender:
            trial = trial_module.Trial.from_proto(request.trial)
            metadata = dict(context.invocation_metadata())
            self._chief.end(trial, json.loads(metadata.get(REPORT, b"{}")), sender=sender)
            return protos.get_service().EndTrialResponse()

    def GetTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._called(context), self._chief.held():
            return super().GetTrial(request, context)

    def GetBestTrials(self, request: Any, context: grpc.ServicerContext) -> Any:
        # A sign of life: of all calls, the one that means nothing else while a trial trains.
        with self._called(context) as sender:
            self._check(context, sender)
            held = dict(context.invocation_metadata()).get(HELD)
            if held:
                with self._chief.held():
                    self._chief._check_owner(sender, held)
            return protos.get_service().GetBestTrialsResponse()

    @contextlib.contextmanager
    def _called(self, context: grpc.ServicerContext) -> Iterator[str]:
        metadata = dict(context.invocation_metadata())
        sender = metadata.get(SENDER, "")
        try:
            if sender:
                self._chief.hear(sender, metadata.get(PROCESS, ""))
            yield sender
        except NameTaken as error:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except NotItsOwn as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def _check(self, context: grpc.ServicerContext, sender: str) -> None:
        if self._chief.stopping:
            if sender:
                self._chief.members[sender].dismissed = True
            context.abort(grpc.StatusCode.CANCELLED, "the search stops")
