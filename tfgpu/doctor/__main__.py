"""`tfgpu doctor`: says what keeps a training from starting, or from using the GPU."""

from __future__ import annotations

from tfgpu.cli import entry, flags, interrupts


def main(argv: list[str]) -> int:
    """Reads the flags and prints the diagnosis.

    Returns:
        0 when a training can start, 1 when not.
    """
    config = flags.parse(argv, command="doctor")
    # Not at the top: `--help` shall answer at once.
    from tfgpu.doctor.run import run

    with interrupts.caught():
        return run(config)


if __name__ == "__main__":
    entry.run(main)
