"""`tfgpu train`: trains a model and leaves a run directory behind."""

from __future__ import annotations

from tfgpu.cli import entry, flags, startup
from tfgpu.train.settings import TrainSettings


def main(argv: list[str]) -> None:
    """Reads the flags and trains; raises a `tfgpu.errors.Error` that has the exit code."""
    train(flags.parse(argv))


def train(config: TrainSettings) -> dict[str, object]:
    """Trains as `config` says, in a process that has not used TensorFlow yet.

    Args:
        config: The settings.

    Returns:
        What `result.json` of the run directory holds.

    Raises:
        tfgpu.errors.Error: The request, the data or the work is at fault.
    """
    # Not at the top: `--help` shall answer at once.
    from tfgpu.cli.console import Console, Stopwatch
    from tfgpu.cli.several_machines import joined
    from tfgpu.machine import compile_cache

    if not config.dry_run:
        compile_cache.keep(config.compile_cache, deterministic=config.deterministic)
    stopwatch = Stopwatch(phase="start-up")
    console = Console(progress=config.progress)
    with (
        joined(config, console=console) as members,
        startup.tensorflow(config),
    ):
        from tfgpu.train.run import run

        return run(config, console=console, stopwatch=stopwatch, members=members)


if __name__ == "__main__":
    entry.run(main)
