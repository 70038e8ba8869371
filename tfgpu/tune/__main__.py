"""`tfgpu tune`: searches for better settings with KerasTuner."""

from __future__ import annotations

import importlib.util

from tfgpu.cli import entry, flags, startup
from tfgpu.errors import RequestError


def main(argv: list[str]) -> None:
    """Reads the flags and searches; raises a `tfgpu.errors.Error` that has the exit code."""
    config = flags.parse(argv, command="tune")
    for package in ("keras_tuner", "grpc"):
        if importlib.util.find_spec(package) is None:
            raise RequestError(
                f"a search needs {package}, which is not installed: pip install 'tfgpu[tune]'"
            )
    # Not at the top, so that `--help` answers at once.
    from tfgpu.cli.console import Console
    from tfgpu.machine import compile_cache

    if not config.dry_run:
        # The workers, which train, inherit it.
        compile_cache.keep(config.compile_cache, deterministic=config.deterministic)
    console = Console(progress=config.progress)
    startup.prepare_environment(verbosity=config.verbosity)
    startup.import_tensorflow(verbosity=config.verbosity, own_code=config.names_own_code)
    from tfgpu.tune.run import run

    run(config, console=console)


if __name__ == "__main__":
    entry.run(main)
