"""A measured process: of a trial, or of the measurement of the machine.

    python -m tfgpu.bench.process trial CONFIG_JSON
    python -m tfgpu.bench.process machine CONFIG_JSON

answers "ready" once TensorFlow is imported, and then requests on standard input: JSON objects
whose "kind" names a method and whose other members are its arguments.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from tfgpu.bench import interleaved_timing
from tfgpu.bench.settings import BenchSettings
from tfgpu.cli import startup
from tfgpu.errors import Error, WorkError


def start(
    kind: str, config: BenchSettings, environment: Mapping[str, str] | None = None
) -> interleaved_timing.MeasuredProcess:
    """Starts a measured process; its first answer says that TensorFlow is imported.

    Args:
        kind: "trial" or "machine".
        config: What it measures.
        environment: Variables to add to those of this process.
    """
    variables = startup.child_environment({**os.environ, **(environment or {})})
    variables.pop("TF_CONFIG", None)
    command = [sys.executable, "-m", "tfgpu.bench.process", kind, json.dumps(config.to_json())]
    return interleaved_timing.MeasuredProcess(command, environment=variables)


def failure(error: Exception) -> dict[str, Any]:
    """Returns an error as an answer: one line, and the exit code that a command would end with."""
    if isinstance(error, Error):
        return {"error": str(error), "exit_code": error.exit_code}
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if type(error).__name__ in ("ResourceExhaustedError", "MemoryError") or (
        "out of memory" in text.lower()
    ):
        return {"error": "out of memory", "exit_code": WorkError.exit_code}
    return {"error": text[:300]}


def main(kind: str, argument: str) -> None:
    """Answers requests until standard input ends."""
    try:
        config = BenchSettings.from_json(json.loads(argument))
        startup.prepare_environment()
        startup.import_tensorflow(own_code=config.names_own_code)
        made: Any
        if kind == "trial":
            from tfgpu.bench.trial import Trial as made
        else:
            from tfgpu.bench.ceilings import Machine as made
    except Exception as error:
        interleaved_timing.answer(failure(error))
        return
    interleaved_timing.answer("ready")
    served: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if served is None:
                served = made(config)
            interleaved_timing.answer(getattr(served, request.pop("kind"))(**request))
        except Exception as error:
            interleaved_timing.answer(failure(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
