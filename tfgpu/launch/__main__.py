"""`tfgpu launch`: starts the workers of one training, on this machine or on several."""

from __future__ import annotations

from tfgpu.cli import entry, flags
from tfgpu.errors import RequestError


def main(argv: list[str]) -> int | None:
    """Reads the flags and starts the workers; raises a `tfgpu.errors.Error` with the exit code."""
    end = argv.index("--") if "--" in argv else len(argv)
    try:
        config = flags.parse(argv[:end], command="launch")
    except RequestError:
        if end < len(argv):
            raise
        # Flags of the training are no flags of ours; what is missing says more.
        config = None
    if config is None or not argv[end + 1 :]:
        raise RequestError(
            "what to start is missing: write it behind --, as in "
            "`tfgpu launch --workers=2 -- train --dataset=digits`"
        )
    # Not at the top: `--help` shall answer at once.
    from tfgpu.launch.run import run

    return run(config, argv[end + 1 :])


if __name__ == "__main__":
    entry.run(main)
