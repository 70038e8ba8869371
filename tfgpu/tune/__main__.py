"""`tfgpu tune`: searches for better settings with KerasTuner."""

from __future__ import annotations

import importlib.util

from tfgpu.cli import entry, flags, startup
from tfgpu.errors import RequestError


def main(argv: list[str]) -> int | None:
    """Reads the flags and searches.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        None, for exit code 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    config = flags.parse(argv, command="tune")
    for package in ("keras_tuner", "grpc"):
        if importlib.util.find_spec(package) is None:
            raise RequestError(
                f"a search needs {package}, which is not installed: pip install 'tfgpu[tune]'"
            )
    # Not at the top: `--help` shall answer at once.
    from tfgpu.cli.console import Console

    console = Console(progress=config.progress)
    startup.prepare_environment(verbosity=config.verbosity)
    startup.import_tensorflow(verbosity=config.verbosity)
    # Imports TensorFlow, so not before.
    from tfgpu.tune.run import run

    run(config, console=console)
    return None


if __name__ == "__main__":
    entry.run(main)
