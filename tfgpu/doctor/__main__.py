"""`tfgpu doctor`: says what keeps a training from starting, or from using the GPU."""

from __future__ import annotations

from typing import cast

from tfgpu.cli import entry, flags, interrupts
from tfgpu.doctor.settings import DoctorSettings


def main(argv: list[str]) -> int:
    """Reads the flags and prints the diagnosis.

    Args:
        argv: The arguments, without the program's name.

    Returns:
        0 when a training can start, 1 when not.
    """
    config = cast(DoctorSettings, flags.parse(argv, command="doctor"))
    # Not at the top, so that `--help` answers at once.
    from tfgpu.doctor.run import run

    with interrupts.caught():
        return run(config)


if __name__ == "__main__":
    entry.run(main)
