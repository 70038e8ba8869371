"""What the workers run: the command behind `--`, checked, with the flags that workers need."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfgpu.artifacts import files
from tfgpu.artifacts.run_directory import default_path
from tfgpu.cli import flags
from tfgpu.cli.entry import COMMANDS
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.launch.settings import LaunchSettings

WORKERS_RUN = ("train", "evaluate", "predict")
_STRATEGY = "multi_worker_mirrored"
_INSTEAD = {
    "tune": "its trials train one beside the other already: `tfgpu tune --workers=N`",
    "bench": "it measures one machine; start it on each",
    "doctor": "it examines one machine; start it on each",
    "export": "it works in one process; start it alone",
    "launch": "it starts workers itself; write it once",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """What each worker runs.

    Attributes:
        argv: The command of tfgpu, and its arguments.
        run_dir: Where the run goes, as far as it is known here.
        dataset: Name of the data set, for the name of a new run.
        model: Name of the model, likewise.
        devices: The flag --devices.
    """

    argv: tuple[str, ...]
    run_dir: str | None = None
    dataset: str = ""
    model: str = ""
    devices: str = "all"

    @property
    def on_cpu(self) -> bool:
        """Whether it was told to leave GPUs alone."""
        return self.devices.startswith("CPU")

    def default_run_dir(self, ending: str | None = None) -> Path:
        """Returns where a new run goes; see `default_path`."""
        return default_path(dataset=self.dataset, model=self.model, ending=ending)

    def with_flags(self, *more: str, **changed: str) -> Command:
        """Returns it with flags that count unless it has them already."""
        return dataclasses.replace(self, argv=(self.argv[0], *more, *self.argv[1:]), **changed)

    def again(self) -> Command:
        """Returns what continues the run that this command began."""
        if self.argv[0] != "train":
            return self
        # The last one counts; with `never`, a run that began would be refused.
        return dataclasses.replace(self, argv=(*self.argv, "--resume=auto"))


def read(config: LaunchSettings, argv: Sequence[str]) -> Command:
    """Checks what the workers are to run, before any of them is started.

    Args:
        config: The settings of the launch.
        argv: What stands behind `--`.

    Raises:
        RequestError: It is nothing that several workers run, or a flag of it is wrong.
        SystemExit: It asks for --help or --version, which was answered.
    """
    name, rest = argv[0], list(argv[1:])
    if name in _INSTEAD:
        raise RequestError(f"{name!r} does not run in several workers: {_INSTEAD[name]}")
    if name not in WORKERS_RUN:
        known = ", ".join(WORKERS_RUN)
        near = did_you_mean(name, COMMANDS)
        raise RequestError(f"{name!r} is not a command{near}: workers run one of {known}")
    if {"--help", "-help", "-h", "--version", "-version"} & set(rest):
        flags.parse(rest, command=name)
    given = flags.given(rest, name)
    if given.get("strategy", _STRATEGY) != _STRATEGY:
        raise RequestError(
            f"--strategy={given['strategy']} trains in one process, and a launch is for several; "
            f"leave it out, or start `tfgpu {name}` without launch"
        )
    if "-" in given.get("paths", ()):
        raise RequestError("-: workers have no standard input; name files or folders")
    if config.join_timeout is not None:
        if "join_timeout" in given:
            raise RequestError("--join_timeout is given twice; once, before --, is enough")
        rest.insert(0, f"--join_timeout={config.join_timeout}")
    for flag, value in (("progress", "plain"), ("strategy", _STRATEGY)):
        if flag not in given and flag in {n for s in flags.settings_of(name).page().values() for n in s}:
            rest.insert(0, f"--{flag}={value}")
    if config.backend == "kubernetes" and "experiment" in given:
        # The file is in the image.
        return Command((name, *rest), given.get("run_dir"), "", "", given.get("devices", "all"))
    settings = flags.parse(rest, command=name)
    return Command(
        argv=(name, *rest),
        run_dir=settings.run_dir,
        dataset=settings.dataset or "",
        model=settings.model or "",
        devices=settings.devices,
    )


@contextlib.contextmanager
def with_run_dir(command: Command) -> Iterator[Command]:
    """Names a new run's directory, so that workers that are started again continue the same run.

    The directory is made, which keeps others from taking the name, and removed afterwards when no
    worker wrote to it.

    Raises:
        RequestError: It cannot be made.
    """
    if command.argv[0] != "train" or command.run_dir is not None:
        yield command
        return
    first = command.default_run_dir()
    files.make_directory(first.parent, flag="run_dir")
    place, number = first, 1
    while True:
        try:
            place.mkdir()
            break
        except FileExistsError:  # Two runs may start in the same second.
            number += 1
            place = first.with_name(f"{first.name}-{number}")
    try:
        yield command.with_flags(f"--run_dir={place}", run_dir=str(place))
    finally:
        _remove_if_empty(place)


def _remove_if_empty(place: Path) -> None:
    for folder in (place, place.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
