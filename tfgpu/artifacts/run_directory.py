"""The directory a run writes: made at once or not at all, each file whole or not there.

Every file that is rewritten is written beside its old self, flushed to the disk and renamed, so
that a run killed at any moment leaves files that can be read. `metrics.jsonl` and `log.txt` only
grow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from tfgpu.artifacts import files
from tfgpu.artifacts.differences import differences
from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.cli.settings import Settings
from tfgpu.errors import DISK_FULL, RequestError


def default_path(*, dataset: str, model: str, ending: str | None = None) -> Path:
    """Returns where a run goes that names no directory; there may be something already.

    Args:
        dataset: Name of the data set.
        model: Name of the model.
        ending: What the name ends with; None for the time.
    """
    ending = ending or time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{files.file_name(dataset)}-{files.file_name(model)}-{ending}"


class RunDirectory:
    """The files of one run.

    Make it with `create`. Of several workers the chief alone writes: the others have one made with
    `chief=False`, whose writing methods do nothing.

    Attributes:
        path: The directory.
        chief: Whether this process writes.
        finished: `result.json` of the same run when it is finished already, else None. Nothing
            is to be written then.
        resuming: Whether it holds the same run, unfinished, to be continued.
    """

    def __init__(
        self,
        path: Path,
        *,
        chief: bool = True,
        finished: dict[str, Any] | None = None,
        resuming: bool = False,
    ):
        self.path = path
        self.chief = chief
        self.finished = finished
        self.resuming = resuming
        self._log: RawIOBase | None = None
        self._lock: DirectoryLock | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        config: Mapping[str, Any],
        settings: type[Settings],
        dataset: str,
        model: str,
        resume: str = "auto",
    ) -> RunDirectory:
        """Makes the directory with its `config.json`, or finds the same run in it.

        The directory is locked until `close`.

        Args:
            path: The directory; None for `runs/<dataset>-<model>-<time>`, a new one.
            config: Every setting of the run, as JSON holds it.
            settings: Their class, which says in what a run that is continued may differ.
            dataset: Name of the data set, for the default path.
            model: Name of the model, for the default path.
            resume: "auto", "never" or "must".

        Raises:
            RequestError: The directory cannot be written, holds another run, files of something
                else, a run of another process, or what `resume` rules out. Nothing has been
                changed then.
            OSError: The disk is full.
        """
        if path is None:
            return cls._create_default(config, dataset=dataset, model=model)
        place = Path(path).expanduser()
        with _refusals(place):
            if place.is_symlink() and not place.exists():
                raise RequestError(f"run_dir {str(place)!r} is a link to nothing")
            if place.exists() and not place.is_dir():
                raise RequestError(f"run_dir {str(place)!r} is not a directory; name another")
            if _is_new(place, resume) and not place.exists() and _make(place, config):
                return cls(place)._locked()
            # It was there, or another process has just made it.
            if next((file for file in place.iterdir() if file.name != ".lock"), None) is None:
                # Kept and not replaced: it may be a mount point, or have rights of its own.
                directory = cls(place)._locked()
                files.write_json(place / "config.json", config)
                return directory
            finished = _existing(place, config, settings, resume)
            if finished is not None:
                return cls(place, finished=finished)
            directory = cls(place, resuming=True)._locked()
            # First: a run that is extended is no longer finished, whenever it is killed.
            result = place / "result.json"
            if result.exists():
                files.write_json(result, _result(place) | {"status": "running"})
            files.write_json(place / "config.json", config)
            return directory

    def _locked(self) -> RunDirectory:
        """Keeps other processes out until `close`."""
        lock = DirectoryLock(self.path)
        lock.__enter__()
        self._lock = lock
        return self

    @classmethod
    def find(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        config: Mapping[str, Any],
        settings: type[Settings],
        resume: str = "auto",
    ) -> dict[str, Any] | None:
        """Looks, before long work, at what `create` will find; writes nothing.

        Args:
            path: As for `create`.
            config: As for `create`.
            settings: As for `create`.
            resume: As for `create`.

        Returns:
            `result.json` when the directory holds the same run, finished.

        Raises:
            RequestError: It holds another run, files of something else, or what `resume` rules
                out.
        """
        if path is None:
            return None
        place = Path(path).expanduser()
        with _refusals(place):
            new = _is_new(place, resume)
            return None if new else _existing(place, config, settings, resume)

    @classmethod
    def recorded(cls, path: str | os.PathLike[str] | None) -> dict[str, Any]:
        """Reads the settings of the run in a directory; writes nothing.

        Args:
            path: As for `create`.

        Returns:
            `config.json`; {} when there is none that can be read, of which `find` has more to say.
        """
        if path is None:
            return {}
        try:
            return _read_json(Path(path).expanduser() / "config.json")
        except (RequestError, OSError):
            return {}

    @classmethod
    def _create_default(
        cls, config: Mapping[str, Any], *, dataset: str, model: str
    ) -> RunDirectory:
        first = default_path(dataset=dataset, model=model)
        place, number = first, 1
        with _refusals(first):
            while not _make(place, config):  # Two runs may start in the same second.
                number += 1
                place = first.with_name(f"{first.name}-{number}")
        return cls(place)._locked()

    @property
    def model_path(self) -> Path:
        """Where the final model goes."""
        return self.path / "model.keras"

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints go; not made here."""
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one, sound or not."""
        return any(self.checkpoints_dir.glob("step-*"))

    @property
    def trained(self) -> bool:
        """Whether there is something of a training in it that a new beginning would overwrite."""
        if self.model_path.exists() or self.metrics_size() > 0:
            return True
        return _result(self.path).get("status") == "finished"

    @property
    def tensorboard_dir(self) -> Path:
        """Where event files go; not made here."""
        return self.path / "tensorboard"

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes environment.json.

        Raises:
            OSError: It cannot be written; `filename` is its path.
        """
        self._write("environment.json", environment)

    def write_fitted(self, fitted: Mapping[str, Any]) -> None:
        """Writes fitted.json: what was fitted on the training split; see `write_result`."""
        self._write("fitted.json", fitted)

    def has_fitted(self, fitted: Mapping[str, Any]) -> bool:
        """Whether fitted.json says this, and what was found on the validation split beside it."""
        try:
            recorded = _read_json(self.path / "fitted.json")
        except (RequestError, OSError):
            return False
        return files.plain(fitted).items() <= recorded.items()

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json; numbers that are not finite become null.

        Args:
            result: The fields of the run's outcome; `status` is "finished" for a run that is.

        Raises:
            OSError: It cannot be written; `filename` is its path.
        """
        self._write("result.json", result)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl, on the disk when this returns.

        Numbers that are not finite become null: JSON has none, and readers differ in what they
        make of NaN.

        Args:
            metrics: The values of one epoch; NumPy scalars may be among them.

        Raises:
            OSError: It cannot be written; `filename` is its path.
        """
        if not self.chief:
            return
        path = self.path / "metrics.jsonl"
        with files.named(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(files.plain(metrics)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics_size(self) -> int:
        """Bytes in metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def truncate_metrics(self, size: int) -> int:
        """Takes back the lines of metrics.jsonl behind its first `size` bytes.

        Returns:
            How many of these are missing, of a file that somebody has shortened or replaced: no
            line is appended to half of another.
        """
        path = self.path / "metrics.jsonl"
        if not self.chief or not path.exists():
            return size if self.chief else 0
        with files.named(path), open(path, "r+b") as file:
            whole = file.read(size).rfind(b"\n") + 1
            if whole < file.seek(0, os.SEEK_END):
                file.truncate(whole)
                os.fsync(file.fileno())
        return size - whole

    def log(self, text: str) -> None:
        """Appends lines to log.txt, without waiting for the disk.

        On a full disk it leaves them out: the terminal has them, and a run that could not save
        a checkpoint must be able to say so and go on.

        Args:
            text: What the terminal showed, without control sequences.

        Raises:
            OSError: It cannot be written; `filename` is its path.
        """
        if not self.chief or self.finished is not None:
            return
        path = self.path / "log.txt"
        try:
            with files.named(path):
                if self._log is None:
                    # Unbuffered: what did not fit must not be tried again later.
                    self._log = open(path, "ab", buffering=0)
                line = text if text.endswith("\n") else text + "\n"
                self._log.write(line.encode(errors="backslashreplace"))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise

    def log_of_worker(self, rank: int, text: str) -> None:
        """Appends lines to workers/RANK.log, without waiting for the disk.

        Args:
            rank: Of another process that trains with this one.
            text: What it showed.
        """
        path = self.path / "workers" / f"{rank}.log"
        # The terminal of that process has it too: no disk is to end a training over it.
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text if text.endswith("\n") else text + "\n")

    def close(self) -> None:
        """Closes log.txt, which a later `log` opens again, and lets other processes in."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.__exit__()
        if self._log is not None:
            log, self._log = self._log, None
            with files.named(self.path / "log.txt"):
                log.close()

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        if self.chief:
            files.write_json(self.path / name, value)


def _is_new(place: Path, resume: str) -> bool:
    """Whether there is no run in a directory.

    Raises:
        RequestError: There is none and there must be one.
    """
    new = not place.is_dir() or all(file.name == ".lock" for file in place.iterdir())
    if new and resume == "must":
        raise RequestError(
            f"run_dir {str(place)!r} holds no run that --resume=must could continue; check the "
            "name, or leave --resume out to start one"
        )
    return new


def _existing(
    place: Path, config: Mapping[str, Any], settings: type[Settings], resume: str
) -> dict[str, Any] | None:
    """Looks at the run in a directory: its result when it is finished, None to continue it.

    Raises:
        RequestError: It holds no run, another one, or one that `resume` rules out.
    """
    if not (place / "config.json").exists():
        raise RequestError(
            f"run_dir {str(place)!r} holds files but no run (no config.json); name another"
        )
    old = _read_json(place / "config.json")
    # A setting that a version before this one did not know had its default's effect.
    defaults = {name: value for name, value in settings().to_json().items() if name in config}
    other = differences(
        defaults | old,
        config,
        ignoring=settings.names(on_resume="ignored") | settings.names(on_resume="allowed"),
    )
    # More epochs are the same run for longer where no epoch before depends on their number, and
    # where the last one does not end the training for good, as Keras ends one with an average. A
    # warm-up takes the same share of the epochs before and after a thaw, so it depends on them.
    longer = (
        len(other) == 1
        and config.get("lr_schedule") == "constant"
        and config.get("ema_momentum") is None
        and not (config.get("unfreeze_at") is not None and config.get("warmup_epochs"))
        and config.get("epochs", 0) > old.get("epochs", 0)
    )
    if other and not longer:
        raise RequestError(
            f"run_dir {str(place)!r} holds a run with other settings ({'; '.join(other)}); "
            "name another --run_dir, or give the same settings",
            page="checkpoints#what-may-change-on-the-way",
        )
    if resume == "never":
        raise RequestError(
            f"run_dir {str(place)!r} holds this run already, and --resume=never overwrites "
            "nothing; name another --run_dir"
        )
    finished = None if longer else _finished(place)
    run = RunDirectory(place)
    # Metrics without a checkpoint are no beginning, but a loss that the training speaks of.
    begun = run.has_checkpoint or run.metrics_size() > 0
    if finished is None and resume == "must" and not begun:
        raise RequestError(
            f"run_dir {str(place)!r} holds a run that was stopped before its first checkpoint, and "
            "nothing that --resume=must could continue; leave --resume out to start it anew"
        )
    return finished


def _finished(place: Path) -> dict[str, Any] | None:
    result = _result(place)
    # Without its model it is gone on with, which writes that again from the last checkpoint.
    whole = RunDirectory(place).model_path.exists()
    return result if whole and result.get("status") == "finished" else None


def _result(place: Path) -> dict[str, Any]:
    path = place / "result.json"
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    """Reads an object.

    Raises:
        RequestError: The file holds none.
        OSError: It cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # Not JSON, or not even text.
        raise RequestError(f"{str(path)!r} is damaged ({error}); {_way_out(path)}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{str(path)!r} holds no JSON object; {_way_out(path)}")
    return value


def _way_out(path: Path) -> str:
    # The checkpoints beside it may well be sound.
    result = "remove that file, and the run goes on from its last checkpoint"
    return result if path.name == "result.json" else "put it back, or name another --run_dir"


def _make(place: Path, config: Mapping[str, Any]) -> bool:
    """Makes a directory that holds config.json, at once or not at all.

    Returns:
        False when something has that name already.
    """
    missing = [parent for parent in place.parents if not parent.exists()]
    temporary = None
    made = False
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            return False
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        # mkdtemp makes it private; a run is for everybody the user's umask lets in.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        files.write_json(temporary / "config.json", config)
        try:
            # Onto a directory that is not empty it fails, and ours never are: of two processes
            # one gets the name.
            os.rename(temporary, place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES):
                if os.path.lexists(place):
                    return False
            raise
        made = True
        return True
    finally:
        if not made:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in missing:  # Innermost first.
                with contextlib.suppress(OSError):
                    parent.rmdir()


@contextlib.contextmanager
def _refusals(place: Path) -> Iterator[None]:
    """Turns what the operating system says of a place into a request error."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise RequestError(
            f"run_dir {str(place)!r} cannot be used ({error.strerror}); name another"
        ) from error
