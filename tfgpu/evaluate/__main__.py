"""`tfgpu evaluate`: measures a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts, startup
from tfgpu.evaluate.settings import EvaluateSettings


def main(argv: list[str]) -> int | None:
    """Reads the flags and evaluates.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        None, for exit code 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    evaluate(flags.parse(argv, command="evaluate"))
    return None


def evaluate(config: EvaluateSettings) -> dict[str, object]:
    """Evaluates as `config` says, in a process that has not used TensorFlow yet.

    Args:
        config: The settings.

    Returns:
        What `evaluation.json` holds.

    Raises:
        tfgpu.errors.Error: The request, the run, the data or the work is at fault.
    """
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun
    from tfgpu.cli.console import Console

    run = TrainedRun.open(str(config.run_dir))
    console = Console(progress="none")
    startup.prepare_environment(verbosity=config.verbosity)
    with interrupts.caught():
        startup.import_tensorflow(verbosity=config.verbosity)
        # Imports TensorFlow, so not before.
        from tfgpu.evaluate.run import evaluate as run_evaluation

        return run_evaluation(config, run, console=console)


if __name__ == "__main__":
    entry.run(main)
