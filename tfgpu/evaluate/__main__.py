"""`tfgpu evaluate`: measures a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts, startup
from tfgpu.evaluate.settings import EvaluateSettings


def main(argv: list[str]) -> None:
    """Reads the flags and evaluates.

    Args:
        argv: The arguments, without the program's name.

    Raises:
        tfgpu.errors.Error: With the exit code of the command.
    """
    evaluate(flags.parse(argv, command="evaluate"))


def evaluate(config: EvaluateSettings) -> dict[str, object]:
    """Evaluates as `config` says, in a process that has not used TensorFlow yet.

    Args:
        config: The settings.

    Returns:
        The contents of `evaluation.json`.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    # Not at the top, so that `--help` answers at once.
    from tfgpu.artifacts.trained_run import TrainedRun
    from tfgpu.cli.console import Console

    run = TrainedRun.open(str(config.run_dir))
    console = Console(progress="none")
    startup.prepare_environment(verbosity=config.verbosity)
    with interrupts.caught():
        startup.import_tensorflow(verbosity=config.verbosity)
        # It imports TensorFlow, so not earlier.
        from tfgpu.evaluate.run import evaluate as run_evaluation

        return run_evaluation(config, run, console=console)


if __name__ == "__main__":
    entry.run(main)
