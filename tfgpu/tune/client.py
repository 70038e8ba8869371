"""The gRPC client through which a worker talks to its chief."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import threading
import time
import uuid
from typing import Any

import grpc
from keras_tuner.engine import trial as trial_module
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_client import OracleClient

from tfgpu.errors import Error, RequestError, WorkError
from tfgpu.tune import address
from tfgpu.tune.chief import LEASE, PROCESS, REPORT, SENDER, TRIAL

HEARTBEAT = 3.0
"""Seconds between two heartbeats."""


class _Call(
    collections.namedtuple(
        "_Call", "method timeout metadata credentials wait_for_ready compression"
    ),
    grpc.ClientCallDetails,
):
    """The details of a gRPC call, with metadata added."""


class _Signed(grpc.UnaryUnaryClientInterceptor):
    """Adds the worker's name and a unique id of its process to each call."""

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
    """KerasTuner's client, with heartbeats.

    Used as a context, it sends one every `HEARTBEAT` seconds. If the chief does not answer for
    `LEASE` seconds, or says that the trial or the name belongs to another worker, the client ends
    this process by SIGTERM, which saves the trial.

    Attributes:
        dismissed: Why the process was ended; None when it was not.
        code: The gRPC status that ended it; None when the chief did not answer.
    """

    def __init__(self, oracle: Any):
        """Connects to the chief that the environment names; `oracle` has the search's settings."""
        super().__init__(oracle)
        ip, port = os.environ[address.ORACLE_IP], int(os.environ[address.ORACLE_PORT])
        target = address.target(ip, port)
        self._channel = grpc.intercept_channel(
            grpc.insecure_channel(target), _Signed(self.tuner_id)
        )
        self.stub = protos.get_service_grpc().OracleStub(self._channel)
        self.dismissed: Error | None = None
        self.code: grpc.StatusCode | None = None
        self._trial_id = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def training(self, trial_id: str) -> Any:
        """Names the trial that is being trained in each heartbeat."""
        self._trial_id = trial_id
        try:
            yield
        finally:
            self._trial_id = ""

    def report_epoch(self, trial_id: str, metrics: dict[str, float], *, step: int) -> None:
        """Sends the metrics of an epoch, which are only shown.

        Nothing depends on them, so a chief that does not answer is left to the heartbeats.
        """
        with contextlib.suppress(grpc.RpcError):
            self.stub.UpdateTrial(
                protos.get_service().UpdateTrialRequest(
                    trial_id=trial_id, metrics=metrics, step=step
                ),
                timeout=HEARTBEAT,
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
            raise as_error(error) from error

    def _send_heartbeats(self) -> None:
        answered: float | None = None  # Until its first answer the chief may take its time.
        while not self._ended.wait(HEARTBEAT):
            trial_id = self._trial_id
            metadata = ((TRIAL, trial_id),) if trial_id else ()
            try:
                self.stub.GetBestTrials(
                    protos.get_service().GetBestTrialsRequest(num_trials=0),
                    timeout=LEASE / 2,
                    metadata=metadata,
                )
                answered = time.monotonic()
            except grpc.RpcError as error:
                final = error.code() in _FINAL
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    # It says nothing about the next trial, if that has begun meanwhile.
                    final = trial_id == self._trial_id
                silent = answered is not None and time.monotonic() - answered > LEASE
                if final or silent:
                    self.dismissed = as_error(error)
                    self.code = error.code() if final else None
                    if not self._ended.is_set():
                        os.kill(os.getpid(), signal.SIGTERM)
                    return


_FINAL = (grpc.StatusCode.CANCELLED, grpc.StatusCode.ALREADY_EXISTS)
"""Statuses that end a worker: the search stops, or the name belongs to another process."""


def as_error(error: grpc.RpcError) -> Error:
    """Returns the error that a failed call stands for."""
    what = error.details() or error.code().name.lower()
    kind = RequestError if error.code() is grpc.StatusCode.ALREADY_EXISTS else WorkError
    return kind(f"the chief of the search: {what}")
