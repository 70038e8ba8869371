"""`tfgpu export`: writes a finished run's model for other runtimes."""

from __future__ import annotations

from tfgpu.cli import entry, flags, startup


def main(argv: list[str]) -> int:
    """Reads the flags and exports; raises a `tfgpu.errors.Error` that has the exit code.

    Returns:
        1 when a file was rejected, else 0.
    """
    config = flags.parse(argv, command="export")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun
    from tfgpu.cli.console import Console
    from tfgpu.export import packages

    packages.check(config.chosen_formats)
    run = TrainedRun.open(str(config.run_dir))
    if config.dry_run:
        from tfgpu.export.dry_run import describe

        Console(progress="none").say(describe(config, run))
        return 0
    with startup.tensorflow(config):
        from tfgpu.export.run import export

        result = export(config, run, console=Console(progress="none"))
    return 0 if all(file["accepted"] for file in result["files"]) else 1


if __name__ == "__main__":
    entry.run(main)
