"""`python -m tfgpu` is the console script `tfgpu`."""

from tfgpu.cli import entry

if __name__ == "__main__":
    entry.main()
