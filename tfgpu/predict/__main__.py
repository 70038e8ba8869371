"""`tfgpu predict`: labels images with a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, startup


def main(argv: list[str]) -> int:
    """Reads the flags and predicts; raises a `tfgpu.errors.Error` that has the exit code.

    Returns:
        1 when an image could not be read, else 0.
    """
    config = flags.parse(argv, command="predict")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun

    run = TrainedRun.open(str(config.run_dir))
    with startup.tensorflow(verbosity=config.verbosity):
        from tfgpu.predict.run import predict

        return predict(config, run)


if __name__ == "__main__":
    entry.run(main)
