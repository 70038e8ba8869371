"""A server of MLflow on loopback, and one that takes connections and counts them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

# No reports to its makers, and none of the processes for jobs that are not of tracking.
_PLAIN = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class MlflowServer:
    """`mlflow server` with SQLite; can be stopped and started again, with what it has.

    Attributes:
        uri: Its address.
    """

    def __init__(self, place):
        self._place, self._port = place, free_port()
        self._process = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self):
        with open(self._place / "server.log", "a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server"),
                    f"--backend-store-uri=sqlite:///{self._place / 'mlflow.db'}",
                    f"--artifacts-destination={self._place / 'artifacts'}",
                    *("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"),
                ],
                stdout=log,
                stderr=log,
                cwd=self._place,
                env={**os.environ, **_PLAIN},
                start_new_session=True,
            )
        last = time.monotonic() + 120
        while time.monotonic() < last:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            time.sleep(0.2)
        raise TimeoutError((self._place / "server.log").read_text())

    def stop(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def counting():
    """An address on loopback that takes connections, and how many it has had."""
    server = socket.create_server(("127.0.0.1", 0))
    had = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.close()
                had.append(1)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", had
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
