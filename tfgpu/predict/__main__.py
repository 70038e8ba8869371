"""`tfgpu predict`: labels images with a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts, startup
from tfgpu.predict.settings import PredictSettings


def main(argv: list[str]) -> int | None:
    """Reads the flags and predicts.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        1 when an image could not be read, else 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    return predict(flags.parse(argv, command="predict"))


def predict(config: PredictSettings) -> int:
    """Predicts as `config` says, in a process that has not used TensorFlow yet.

    Args:
        config: The settings.

    Returns:
        1 when an image could not be read, else 0.

    Raises:
        tfgpu.errors.Error: The request, the run or the work is at fault.
    """
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun

    run = TrainedRun.open(str(config.run_dir))
    startup.prepare_environment(verbosity=config.verbosity)
    with interrupts.caught():
        startup.import_tensorflow(verbosity=config.verbosity)
        # Imports TensorFlow, so not before.
        from tfgpu.predict.run import predict as run_prediction

        return run_prediction(config, run)


if __name__ == "__main__":
    entry.run(main)
