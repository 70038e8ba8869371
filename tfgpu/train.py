"""`tfgpu train`."""

from tfgpu import cli, flags


def main(argv: list[str]) -> int | None:
    """Trains."""
    config = flags.parse(argv)
    print(config)
    return None


if __name__ == "__main__":
    cli.run(main)
