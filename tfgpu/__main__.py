"""`python -m tfgpu` is the console script `tfgpu`."""

from tfgpu import cli

if __name__ == "__main__":
    cli.main()
