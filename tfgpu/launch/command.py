"""What the workers run: the command behind `--`, checked, with the flags that workers need."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from tfgpu.artifacts import files
from tfgpu.artifacts.run_directory import default_path
from tfgpu.cli import flags
from tfgpu.cli.entry import COMMANDS
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.launch.settings import LaunchSettings

WORKERS_RUN = ("train", "evaluate", "predict", "doctor")
_STRATEGY = "multi_worker_mirrored"
_INSTEAD = {
    "tune": "its trials train one beside the other already: `tfgpu tune --workers=N`",
    "bench": "it measures one machine; start it on each",
    "export": "it works in one process; start it alone",
    "launch": "it starts workers itself; write it once",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """What each worker runs.

    Attributes:
        name: The command of tfgpu.
        typed: Its arguments, as the user gave them.
        added: Flags that workers need besides.
        run_dir: Where the run goes, as far as it is known here.
        dataset: Name of the data set, for the name of a new run.
        model: Name of the model, likewise.
        devices: Its --devices.
        resume: Whether it may continue a run.
    """

    name: str
    typed: tuple[str, ...]
    added: tuple[str, ...] = ()
    run_dir: str | None = None
    dataset: str = ""
    model: str = ""
    devices: str = "all"
    resume: bool = True

    @property
    def on_cpu(self) -> bool:
        """Whether it was told to leave GPUs alone."""
        return self.devices.startswith("CPU")

    @property
    def argv(self) -> list[str]:
        """The command of tfgpu, and its arguments."""
        return [self.name, *self.added, *self.typed]

    def default_run_dir(self, ending: str | None = None) -> Path:
        """Returns where a new run goes; see `default_path`."""
        return default_path(dataset=self.dataset, model=self.model, ending=ending)

    def in_directory(self, run_dir: Path | PurePath) -> Command:
        """Returns it with the directory of the run."""
        typed = (f"--run_dir={run_dir}", *self.typed)
        return dataclasses.replace(self, typed=typed, run_dir=str(run_dir))

    def again(self) -> Command:
        """Returns what continues the run that this command began."""
        # The last one counts; with `never`, a run that began would be refused.
        typed = self.typed if self.resume else (*self.typed, "--resume=auto")
        return dataclasses.replace(self, typed=typed, resume=True)

    def continued_by(self, config: LaunchSettings) -> str:
        """Returns the command line that continues its run; "" when it is no training."""
        if self.name != "train":
            return ""
        ours = flags.to_argv(config, command="launch")
        return shlex.join(["tfgpu", "launch", *ours, "--", self.name, *self.again().typed])


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
    if "join_timeout" in given and config.join_timeout is not None:
        raise RequestError("--join_timeout stands before -- and behind it; once is enough")
    added = [] if "strategy" in given else [f"--strategy={_STRATEGY}"]
    if config.join_timeout is not None:
        added.append(f"--join_timeout={config.join_timeout}")
    flags_known = [flag for section in flags.settings_of(name).page().values() for flag in section]
    if "progress" in flags_known and "progress" not in given:
        added.append("--progress=plain")  # A bar would be drawn over that of another worker.
    command = Command(
        name=name,
        typed=tuple(rest),
        added=tuple(added),
        run_dir=given.get("run_dir"),
        devices=given.get("devices", "all"),
        resume=given.get("resume") != "never",
    )
    if config.backend == "kubernetes" and "experiment" in given:
        return command  # The file is in the image.
    settings = flags.parse(command.argv[1:], command=name)
    return dataclasses.replace(
        command,
        run_dir=getattr(settings, "run_dir", None),
        dataset=getattr(settings, "dataset", None) or "",
        model=getattr(settings, "model", None) or "",
        devices=settings.devices,
        resume=getattr(settings, "resume", "auto") != "never",
    )


@contextlib.contextmanager
def with_run_dir(command: Command) -> Iterator[Command]:
    """Names a new run's directory, so that workers that are started again continue the same run.

    The directory is made, which keeps others from taking the name, and removed afterwards when no
    worker wrote to it.

    Raises:
        RequestError: It cannot be made.
    """
    if command.name != "train" or command.run_dir is not None:
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
        yield command.in_directory(place)
    finally:
        _remove_if_empty(place)


def _remove_if_empty(place: Path) -> None:
    for folder in (place, place.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
