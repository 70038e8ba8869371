"""`tfgpu runs`: lists run directories, and says in which settings they differ."""

from __future__ import annotations

from tfgpu.cli import entry, flags


def main(argv: list[str]) -> None:
    """Reads the flags and prints the list; raises a `tfgpu.errors.Error`."""
    config = flags.parse(argv, command="runs")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.runs.run import run

    print(run(config))


if __name__ == "__main__":
    entry.run(main)
