"""`tfgpu train`: trains a model and leaves a run directory behind."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts, startup
from tfgpu.train.settings import TrainSettings


def main(argv: list[str]) -> int | None:
    """Reads the flags and trains.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        None, for exit code 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    train(flags.parse(argv))
    return None


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

    stopwatch = Stopwatch(phase="start-up")
    console = Console(progress=config.progress)
    startup.prepare_environment(verbosity=config.verbosity)
    with interrupts.caught():
        startup.import_tensorflow(verbosity=config.verbosity)
        # Imports TensorFlow, so not before.
        from tfgpu.train.run import run

        return run(config, console=console, stopwatch=stopwatch)


if __name__ == "__main__":
    entry.run(main)
