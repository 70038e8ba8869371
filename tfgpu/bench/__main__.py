"""`tfgpu bench`: measures where a training's time goes, and what would save some of it."""

from __future__ import annotations

from typing import cast

from tfgpu.bench.settings import BenchSettings
from tfgpu.cli import entry, flags, interrupts


def main(argv: list[str]) -> None:
    """Reads the flags and measures.

    Args:
        argv: The arguments, without the program's name.

    Raises:
        tfgpu.errors.Error: With the exit code of the command.
    """
    config = cast(BenchSettings, flags.parse(argv, command="bench"))
    # Not at the top, so that `--help` answers at once.
    from tfgpu.bench import run
    from tfgpu.cli.console import Console

    with interrupts.caught():
        run.run(config, console=Console(progress=config.progress))


if __name__ == "__main__":
    entry.run(main)
