"""`tfgpu report`: one HTML file about a run, or about several side by side."""

from __future__ import annotations

from tfgpu.cli import entry, flags


def main(argv: list[str]) -> None:
    """Reads the flags and writes the file; raises a `tfgpu.errors.Error`."""
    config = flags.parse(argv, command="report")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.report.run import run

    print(f"written: {run(config)}")


if __name__ == "__main__":
    entry.run(main)
