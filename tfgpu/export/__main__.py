"""`tfgpu export`: writes a finished run's model for other runtimes."""

from __future__ import annotations

from typing import Any

from tfgpu.cli import entry, flags, interrupts, startup
from tfgpu.export.settings import ExportSettings


def main(argv: list[str]) -> int | None:
    """Reads the flags and exports.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        1 when a file was rejected, else 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    result = export(flags.parse(argv, command="export"))
    return 0 if all(file["accepted"] for file in result["files"]) else 1


def export(config: ExportSettings) -> dict[str, Any]:
    """Exports as `config` says, in a process that has not used TensorFlow yet.

    Args:
        config: The settings.

    Returns:
        What `export.json` holds.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun
    from tfgpu.cli.console import Console
    from tfgpu.export import packages

    packages.check(config.chosen_formats)
    run = TrainedRun.open(str(config.run_dir))
    console = Console(progress="none")
    startup.prepare_environment(verbosity=config.verbosity)
    with interrupts.caught():
        startup.import_tensorflow(verbosity=config.verbosity)
        # Imports TensorFlow, so not before.
        from tfgpu.export.run import export as run_export

        return run_export(config, run, console=console)


if __name__ == "__main__":
    entry.run(main)
