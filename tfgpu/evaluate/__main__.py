"""`tfgpu evaluate`: measures a finished run's model."""

from __future__ import annotations

from tfgpu.cli import entry, flags, startup


def main(argv: list[str]) -> None:
    """Reads the flags and evaluates; raises a `tfgpu.errors.Error` that has the exit code."""
    config = flags.parse(argv, command="evaluate")
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
        from tfgpu.evaluate.run import evaluate

        evaluate(config, run, console=console, members=members)


if __name__ == "__main__":
    entry.run(main)
