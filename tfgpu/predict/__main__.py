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
    from tfgpu.artifacts import shared_run
    from tfgpu.cli.console import Console
    from tfgpu.cli.several_machines import joined

    console = Console(progress="none")
    with (
        joined(config, console=console) as members,
        shared_run.opened(members, str(config.run_dir)) as run,
        startup.tensorflow(config),
    ):
        from tfgpu.predict.run import predict

        return predict(config, run, members=members)


if __name__ == "__main__":
    entry.run(main)
