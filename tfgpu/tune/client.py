"""A worker's end of the line to its chief."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from typing import Any, NamedTuple

import grpc
from keras_tuner.engine import trial as trial_module
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_client import OracleClient

from tfgpu.errors import Error, RequestError, WorkError
from tfgpu.tune import address
from tfgpu.tune.chief import HELD, LEASE, PROCESS, REPORT, SENDER

BEAT = 3.0
"""Seconds between two signs of life."""


class _Call(
    NamedTuple(
        "_Call",
        [
            ("method", str),
            ("timeout", Any),
            ("metadata", Any),
            ("credentials", Any),
            ("wait_for_ready", Any),
            ("compression", Any),
        ],
    ),
    grpc.ClientCallDetails,
):
    """The details of a call, with metadata added."""


class _Signed(grpc.UnaryUnaryClientInterceptor):
    """Puts the worker's name on each call, and what tells this process from others."""

    def __init__(self, name: str):
        self._signature = [(SENDER, name), (PROCESS, uuid.uuid4().hex)]

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), *self._signature]
        call = _Call(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
        return continuation(call, request)


class Client(OracleClient):
    """KerasTuner's client, with signs of life.

    Used as a context, it sends one every `BEAT` seconds. A chief that does not answer for `LEASE`
    seconds, or says that the trial or the name is another worker's, ends this process by SIGTERM,
    which saves the trial.

    Attributes:
        dismissed: Why the process was ended; None when it was not.
        code: The status that told it; None when the chief did not answer.
    """

    def __init__(self, oracle: Any):
        """Connects to the chief that the environment names.

        Args:
            oracle: KerasTuner's, for the settings of the search.
        """
        super().__init__(oracle)
        ip, port = os.environ[address.ORACLE_IP], int(os.environ[address.ORACLE_PORT])
        target = address.target(ip, port)
        self._channel = grpc.intercept_channel(
            grpc.insecure_channel(target), _Signed(self.tuner_id)
        )
        self.stub = protos.get_service_grpc().OracleStub(self._channel)
        self.dismissed: Error | None = None
        self.code: grpc.StatusCode | None = None
        self._held = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def holding(self, trial_id: str) -> Any:
        """Says with each sign of life which trial is being trained."""
        self._held = trial_id
        try:
            yield
        finally:
            self._held = ""

    def tell(self, trial_id: str, metrics: dict[str, float], *, step: int) -> None:
        """Passes an epoch's metrics on, for people to see.

        Nothing depends on it, so a chief that does not answer is left to the signs of life.
        """
        with contextlib.suppress(grpc.RpcError):
            self.stub.UpdateTrial(
                protos.get_service().UpdateTrialRequest(
                    trial_id=trial_id, metrics=metrics, step=step
                ),
                timeout=BEAT,
            )

    def finish(self, trial: trial_module.Trial, report: dict[str, Any]) -> None:
        """Ends a trial.

        Args:
            trial: With its new status.
            report: What `Chief.end` takes.

        Raises:
            WorkError: The chief cannot be reached, or has given the trial to another.
        """
        try:
            self.stub.EndTrial(
                protos.get_service().EndTrialRequest(trial=trial.to_proto()),
                wait_for_ready=True,
                timeout=LEASE,
                metadata=((REPORT, json.dumps(report).encode()),),
            )
        except grpc.RpcError as error:
            raise lost(error) from error

    def _beat(self) -> None:
        answered: float | None = None  # A chief that has not begun yet is waited for.
        while not self._ended.wait(BEAT):
            held = self._held
            metadata = ((HELD, held),) if held else ()
            try:
                self.stub.GetBestTrials(
                    protos.get_service().GetBestTrialsRequest(num_trials=0),
                    timeout=LEASE / 2,
                    metadata=metadata,
                )
                answered = time.monotonic()
            except grpc.RpcError as error:
                told = error.code() in _LAST_WORDS
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    # Of a trial that has ended meanwhile it says nothing about the next one.
                    told = held == self._held
                silent = answered is not None and time.monotonic() - answered > LEASE
                if told or silent:
                    self.dismissed = lost(error)
                    self.code = error.code() if told else None
                    if not self._ended.is_set():
                        os.kill(os.getpid(), signal.SIGTERM)
                    return


_LAST_WORDS = (grpc.StatusCode.CANCELLED, grpc.StatusCode.ALREADY_EXISTS)
"""The search stops; the name is another process's."""


def lost(error: grpc.RpcError) -> Error:
    """What a failed call means."""
    what = error.details() or error.code().name.lower()
    kind = RequestError if error.code() is grpc.StatusCode.ALREADY_EXISTS else WorkError
    return kind(f"the chief of the search: {what}")
