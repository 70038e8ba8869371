"""`tfgpu bench`: measures where a training's time goes, and what would save some of it."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts


def main(argv: list[str]) -> None:
    """Reads the flags and measures; raises a `tfgpu.errors.Error` that has the exit code."""
    config = flags.parse(argv, command="bench")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.bench.run import run
    from tfgpu.cli.console import Console

    with interrupts.caught():
        run(config, console=Console(progress=config.progress))


if __name__ == "__main__":
    entry.run(main)
