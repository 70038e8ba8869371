"""`tfgpu bench`: measures where a training's time goes, and what would save some of it."""

from __future__ import annotations

from typing import cast

from tfgpu.bench.settings import BenchSettings
from tfgpu.cli import entry, flags, interrupts


def main(argv: list[str]) -> int | None:
    """Reads the flags and measures.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        None, for exit code 0.

    Raises:
        tfgpu.errors.Error: With the exit code that the outcome calls for.
    """
    config = cast(BenchSettings, flags.parse(argv, command="bench"))
    # Not at the top: `--help` shall answer at once.
    from tfgpu.bench import run
    from tfgpu.cli.console import Console

    with interrupts.caught():
        run.run(config, console=Console(progress=config.progress))
    return None


if __name__ == "__main__":
    entry.run(main)
