"""`tfgpu evaluate`: measures a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, startup


def main(argv: list[str]) -> None:
    """Reads the flags and evaluates; raises a `tfgpu.errors.Error` that has the exit code."""
    config = flags.parse(argv, command="evaluate")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.artifacts.trained_run import TrainedRun
    from tfgpu.cli.console import Console

    run = TrainedRun.open(str(config.run_dir))
    with startup.tensorflow(verbosity=config.verbosity):
        from tfgpu.evaluate.run import evaluate

        evaluate(config, run, console=Console(progress="none"))


if __name__ == "__main__":
    entry.run(main)
