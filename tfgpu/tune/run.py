"""One search from beginning to end: space, chief and workers, the winner's retrainings, files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfgpu import errors
from tfgpu.artifacts import files
from tfgpu.artifacts.files import plain
from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.artifacts.run_directory import differences
from tfgpu.cli import flags, interrupts
from tfgpu.cli.console import Console, duration
from tfgpu.cli.startup import child_environment
from tfgpu.data import sources
from tfgpu.errors import Interrupted, RequestError, WorkError
from tfgpu.machine import devices
from tfgpu.models.builders import find_builder
from tfgpu.train import recipe
from tfgpu.train.settings import TrainSettings
from tfgpu.tune import address, oracle, worker_pool
from tfgpu.tune.chief import ATTEMPTS, FAILURES, Chief
from tfgpu.tune.client import BEAT
from tfgpu.tune.oracle import COMPLETED, FAILED
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.space import Space
from tfgpu.tune.trials_table import Board, shown_settings
from tfgpu.tune.worker import wait_until_free

SEARCH = "search.json"
RESULT = "result.json"
BEST = "best_config.json"
TABLE = "trials.jsonl"
FINAL = "final"

_TICK = 0.2
_SAVE_EVERY = 10.0


def run(config: TuneSettings, *, console: Console) -> dict[str, Any]:
    """Searches, retrains the best and says what came of it.

    Args:
        config: The settings.
        console: Where to speak.

    Returns:
        What `result.json` holds; {} on a machine that only trains for another's search.

    Raises:
        tfgpu.errors.Error: The request, the data or the work is at fault.
    """
    with interrupts.caught() as signals:
        role = address.read(os.environ)
        if not role.chief:
            return _work_for_another(config, role, console, signals)
        if config.workers == 0 and role.alone:
            raise RequestError(
                f"--workers=0 leaves nobody to train; it goes with {address.TUNER_ID} and its "
                "companions, where other machines do"
            )
        address.check_free(role)
        search = _Search.open(config, console=console)
        with search:
            if (finished := search.finished()) is not None:
                console.say(f"{search.place} holds this search, finished")
                console.say(_summary(finished, search.place))
                return finished
            search.go(role, signals)
            return search.conclude(signals)


class _Search:
    """A search in its directory, which is locked while it is a context."""

    def __init__(
        self,
        config: TuneSettings,
        *,
        place: Path,
        space: Space,
        epochs: int,
        gpus: Sequence[str],
        console: Console,
    ):
        self.config = dataclasses.replace(config, run_dir=str(place))
        self.place = place
        self._space = space
        self._epochs = epochs
        self._gpus = gpus
        self._console = console
        self._lock = DirectoryLock(place)
        self._oracle: Any = None
        self._began = time.monotonic()
        self._before = 0.0

    @classmethod
    def open(cls, config: TuneSettings, *, console: Console) -> _Search:
        """Finds all that can be wrong with a search before anything is written.

        Raises:
            tfgpu.errors.Error: The space, the data, the devices or the directory is at fault.
        """
        space = Space.load(config.space)
        builder = find_builder(config.model)
        # Without workers here, the devices are the other machines'.
        gpus, replicas = _devices(config) if config.workers else ([], 1)
        worker_pool.places(max(1, config.workers), gpus=gpus, cores=worker_pool.cores())
        data = sources.load(
            config.dataset,
            data_dir=config.data_dir,
            validation_fraction=config.validation_fraction,
            image_size=config.image_size,
            seed=config.seed,
        )

        def resolve(settings: TrainSettings) -> recipe.Resolved:
            if settings.model == config.model:
                recipe.check_builder(settings, builder)
            return recipe.resolve(
                settings,
                num_examples=data.train.num_examples,
                replicas=replicas,
                on_gpu=bool(gpus),
            )

        epochs = resolve(config.training).epochs
        if config.tuner == "hyperband" and "epochs" in space.values():
            raise RequestError(
                f"--space={config.space}: 'epochs' is what --tuner=hyperband decides; leave it "
                "out, or choose another tuner"
            )
        space.check(config.training, resolve)
        place = _directory(config, data.name)
        search = cls(config, place=place, space=space, epochs=epochs, gpus=gpus, console=console)
        search._compare()
        return search

    # ---- the directory -------------------------------------------------------------------

    def _compare(self) -> None:
        """Looks whether the directory is free, or holds this search."""
        path = self.place / SEARCH
        resume = self.config.resume
        there = path.exists()
        if not there:
            # Hidden ones are ours: the lock, and what a kill left half written.
            if self.place.exists() and any(file.name[0] != "." for file in self.place.iterdir()):
                raise RequestError(
                    f"run_dir {str(self.place)!r} holds files but no search (no {SEARCH}); name "
                    "another"
                )
            if resume == "must":
                raise RequestError(
                    f"run_dir {str(self.place)!r} holds no search that --resume=must could "
                    "continue; check the name, or leave --resume out to start one"
                )
            return
        _check_same(self.place, self.config, self._space)
        if resume == "never":
            raise RequestError(
                f"run_dir {str(self.place)!r} holds this search already, and --resume=never "
                "overwrites nothing; name another --run_dir"
            )

    def __enter__(self) -> _Search:
        files.make_directory(self.place, flag="run_dir")
        self._lock.__enter__()
        try:
            # First: without it the rest would be files of something else.
            if not (self.place / SEARCH).exists():
                _write(self.place / SEARCH, _identity(self.config, self._space))
            if not (self.place / "tensorboard").exists():
                _describe(self._space.values(), self.place / "tensorboard")
            self._console.log_to(self._log)
            self._oracle = oracle.make(
                self.config,
                self._space.hyperparameters,
                epochs=self._epochs,
                place=self.place,
            )
            self._oracle.reload()
            self._before = self._oracle.seconds
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._console.log_to(None)
        self._lock.__exit__()

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError), open(self.place / "log.txt", "a") as log:
            log.write(text if text.endswith("\n") else text + "\n")

    def finished(self) -> dict[str, Any] | None:
        """The result of the same search, when it has nothing left to do."""
        path = self.place / RESULT
        if not path.exists():
            return None
        result = _read(path)
        asked = {name: getattr(self.config, name) for name in _ASKED}
        if result.get("status") != "finished" or result.get("asked") != asked:
            return None
        return result

    # ---- the search ----------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """That the search has taken, in all processes together."""
        return self._before + time.monotonic() - self._began

    @property
    def _left(self) -> float | None:
        if self.config.max_minutes is None:
            return None
        return self.config.max_minutes * 60 - self.seconds

    def go(self, role: address.Role, signals: interrupts.Interrupts) -> None:
        """Hands out trials until there are no more, or no more time."""
        self._began = time.monotonic()
        chief = Chief(self._oracle)
        chief.start(role.ip, role.port)
        config = self.config
        places = (
            worker_pool.places(config.workers, gpus=self._gpus, cores=worker_pool.cores())
            if config.workers
            else []
        )
        workers = [
            worker_pool.Worker(
                f"{role.name}-{number}" if role.name != "worker" else f"worker-{number}",
                place,
                config=config,
                ip=role.ip,
                port=chief.port,
            )
            for number, place in enumerate(places)
        ]
        known = len(self._oracle.trials)
        waiting = len(self._oracle.waiting)
        if known:
            self._console.say(
                f"continuing the search in {self.place}: {known} trials"
                + (f", {waiting} of them to be gone on with" if waiting else "")
            )
        board = Board(self._console, config.objective)
        board.remember(self._oracle)
        stopped: list[int] = []
        try:
            with board, signals.deferred(stopped.append):
                for worker in workers:
                    worker.start()
                self._watch(chief, workers, board, stopped)
        finally:
            chief.stopping = True
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.wait()
            self._oracle.seconds = self.seconds
            # Those on other machines hear it with their next sign of life.
            chief.tell_to_stop({worker.name for worker in workers}, seconds=2 * BEAT)
            chief.close()
            self._write_trials()
        if stopped:
            raise Interrupted(
                stopped[0],
                f"stopped by {signal.Signals(stopped[0]).name}; continue with: {self.command}",
            )
        if chief.failures >= FAILURES:
            reason = self._last_reason()
            raise WorkError(
                f"{FAILURES} trials on end have failed, the last: {reason}; mend it and continue "
                f"with: {self.command}"
            )

    def _watch(
        self, chief: Chief, workers: list[worker_pool.Worker], board: Board, stopped: list[int]
    ) -> None:
        saved = time.monotonic()
        shown = -1
        warned = False
        alive = set(workers)
        while True:
            time.sleep(_TICK)
            if chief.error is not None:
                raise WorkError(
                    f"the search broke: {type(chief.error).__name__}: {chief.error}"
                ) from chief.error
            for worker in list(alive):
                code = worker.poll()
                if code is not None:
                    self._ended(worker, code, chief, alive)
            by_name = {worker.name: worker for worker in workers}
            for name in chief.look_after():
                # Stopped, or stuck: its trial is another's now.
                if name in by_name:
                    by_name[name].kill()
            with chief.held() as held:
                board.show(held, left=self._left)
                ended = len(held.end_order)
                now = time.monotonic()
                if ended != shown:
                    shown = ended
                    self._write_trials()
                if now - saved > _SAVE_EVERY:
                    saved = now
                    held.seconds = self.seconds
                    held.save()
                under_way = len(held.ongoing_trials)
                unsaved = held.unsaved
            if unsaved is not None and not warned:
                self._console.say(
                    f"warning: {unsaved.strerror} while writing {unsaved.filename}; the search "
                    "goes on and tries again"
                )
            warned = unsaved is not None
            if stopped:
                return
            if self._left is not None and self._left <= 0:
                self._console.say(f"the {self.config.max_minutes:g} minutes are over")
                return
            if (chief.over or chief.closing) and not under_way and not alive and chief.all_told():
                return

    def _ended(
        self, worker: worker_pool.Worker, code: int, chief: Chief, alive: set[worker_pool.Worker]
    ) -> None:
        """Deals with a worker process that has ended."""
        member = chief.members.get(worker.name)
        if code == 0 or (member is not None and member.dismissed):
            alive.discard(worker)
            return
        if code != worker_pool.AGAIN:
            if code in _HOPELESS:
                # Nor would the next one get further.
                raise worker.failure(code)
            if worker.idle_deaths(len(chief.oracle.end_order)) >= ATTEMPTS:
                raise worker.failure(code)
            chief.died(worker.name, worker_pool.how(code))
            self._console.say(
                f"{worker.name} {worker_pool.how(code)} and is started again: {worker.last_words()}"
            )
        worker.start()

    def _last_reason(self) -> str:
        failed = [
            self._oracle.records.get(name, {}).get("reason")
            for name in self._oracle.end_order
            if self._oracle.trials[name].status == FAILED
        ]
        return str(failed[-1]) if failed else "unknown"

    @property
    def command(self) -> str:
        """What goes on with the search."""
        again = dataclasses.replace(self.config, resume="auto")
        return shlex.join(["tfgpu", "tune", *flags.to_argv(again, command="tune")])

    def _write_trials(self) -> None:
        """Writes trials.jsonl: a line for each trial, in the order of their start."""
        lines = []
        for trial in self._oracle.trials.values():
            record = self._oracle.records.get(trial.trial_id, {})
            values = trial.hyperparameters.values
            lines.append(
                {
                    "trial": trial.trial_id,
                    "status": trial.status.lower(),
                    "reason": record.get("reason"),
                    self.config.objective: trial.score,
                    "metrics": record.get("metrics"),
                    "epochs": record.get("epochs"),
                    "values": {k: v for k, v in values.items() if not k.startswith("tuner/")},
                    "tuner": {
                        k.removeprefix("tuner/"): v
                        for k, v in values.items()
                        if k.startswith("tuner/")
                    },
                    "settings": record.get("settings"),
                    "directory": record.get("directory"),
                    "worker": record.get("worker"),
                    "parameters": record.get("parameters"),
                    "samples_per_second": record.get("samples_per_second"),
                    "started": record.get("started"),
                    "ended": record.get("ended"),
                    "seconds": record.get("seconds"),
                    "where": record.get("where"),
                }
            )
        with contextlib.suppress(OSError), files.replacing(self.place / TABLE) as beside:
            beside.write_text("".join(json.dumps(plain(line)) + "\n" for line in lines), "utf-8")

    # ---- the winner ----------------------------------------------------------------------

    def conclude(self, signals: interrupts.Interrupts) -> dict[str, Any]:
        """Writes the best settings, retrains them, and sums up."""
        trials = list(self._oracle.trials.values())
        best = self._oracle.get_best_trials(len(trials))
        best = [trial for trial in best if trial.status == COMPLETED]
        if self.config.final_seeds == 0:
            # The model of a trial that was promoted is gone: its run went on.
            gone = {t.hyperparameters.values.get("tuner/trial_id") for t in trials}
            best = [trial for trial in best if trial.trial_id not in gone] or best
        if not best:
            raise WorkError(
                f"no trial was completed in {duration(self.seconds)}; raise --max_minutes, and "
                f"continue with: {self.command}"
            )
        trial = best[0]
        record = self._oracle.records[trial.trial_id]
        winner = _read(self.place / record["directory"] / "config.json")
        settings = {
            name: value
            for name, value in winner.items()
            if name not in ("run_dir", "resume", "progress", "verbosity")
        }
        for name in _OF_THE_WORKER - set(record.get("settings") or ()):
            settings[name] = getattr(self.config, name)
        _write(self.place / BEST, settings)
        final = self._retrain(trial.trial_id, settings, signals)
        result: dict[str, Any] = {
            "status": "finished",
            "tuner": self.config.tuner,
            "objective": self.config.objective,
            "trials": len(trials),
            "completed": sum(t.status == COMPLETED for t in trials),
            "failed": sum(t.status == FAILED for t in trials),
            "best_trial": trial.trial_id,
            "best_score": trial.score,
            "best_values": {
                k: v for k, v in trial.hyperparameters.values.items() if not k.startswith("tuner/")
            },
            "best_settings": record.get("settings"),
            "final": final,
            **_spreads(final),
            "search_seconds": self._oracle.seconds,
            "final_seconds": sum(run["seconds"] or 0.0 for run in final),
            "asked": {name: getattr(self.config, name) for name in _ASKED},
        }
        _write(self.place / RESULT, result)
        self._console.say(_summary(result, self.place))
        return result

    def _retrain(
        self, trial_id: str, settings: dict[str, Any], signals: interrupts.Interrupts
    ) -> list[dict[str, Any]]:
        """Trains the winner again, with seeds of which the search knows nothing."""
        if self.config.final_seeds == 0:
            directory = self.place / self._oracle.records[trial_id]["directory"]
            return [self._tested(directory, signals)]
        found = []
        for number in range(1, self.config.final_seeds + 1):
            seed = self.config.seed + number
            directory = self.place / FINAL / f"trial-{trial_id}-seed-{seed}"
            self._console.progress_line(f"training the best settings with seed {seed}")
            final = TrainSettings.from_json(
                settings | {"seed": seed, "run_dir": str(directory), "progress": "none"}
            )
            wait_until_free(directory)  # By a process whose parent was killed.
            run: dict[str, Any] = {"seed": seed, "reason": None}
            try:
                self._command(["train", *flags.to_argv(final)], signals, name=f"seed {seed}")
            except WorkError as error:
                run["reason"] = str(error)
            result = _read(directory / RESULT)
            run |= {
                "directory": str(directory.relative_to(self.place)),
                "seconds": result.get("total_seconds"),
                **{
                    name: result.get(name) if run["reason"] is None else None
                    for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
                },
            }
            found.append(run)
            self._console.progress_line(
                run["reason"]
                or f"seed {seed}: {self.config.objective} {run[self.config.objective]:.4f}"
            )
        return found

    def _tested(self, directory: Path, signals: interrupts.Interrupts) -> dict[str, Any]:
        """The best trial's own model, on the test split."""
        out = directory / "evaluation" / "test"
        began = time.perf_counter()
        self._command(
            [
                "evaluate",
                f"--run_dir={directory}",
                f"--out={out}",
                *([f"--model={self.config.model}"] if ":" in self.config.model else []),
                f"--strategy={self.config.strategy}",
                f"--devices={self.config.devices}",
                f"--virtual_devices={self.config.virtual_devices}",
            ],
            signals,
            name="the best trial's test",
        )
        tested, trained = _read(out / "evaluation.json"), _read(directory / RESULT)
        return {
            "seed": self.config.seed,
            "directory": str(directory.relative_to(self.place)),
            "seconds": time.perf_counter() - began,
            "val_accuracy": trained.get("val_accuracy"),
            "val_loss": trained.get("val_loss"),
            "test_accuracy": tested.get("accuracy"),
            "test_loss": tested.get("loss"),
        }

    def _command(self, argv: Sequence[str], signals: interrupts.Interrupts, *, name: str) -> None:
        """Runs a command of tfgpu's in a process of its own.

        Raises:
            tfgpu.errors.Error: It failed; with what it said and its exit code.
            Interrupted: A signal came.
        """
        stopped: list[int] = []
        log = self.place / "logs" / "final.log"
        log.parent.mkdir(exist_ok=True)
        environment = child_environment()
        for variable in (address.TUNER_ID, address.ORACLE_IP, address.ORACLE_PORT):
            environment.pop(variable, None)
        if self._gpus and self.config.workers > 1:
            # As in the trials, whose batch may not divide among more.
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[0]
        with (
            open(log, "a") as out,
            tempfile.TemporaryFile("w+", errors="replace") as errors_,
            signals.deferred(stopped.append),
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "tfgpu.tune.child", *argv],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors_,
                env=environment,
                start_new_session=True,
            )
            try:
                told = False
                while process.poll() is None:
                    if stopped and not told:
                        told = True
                        process.terminate()
                    time.sleep(_TICK)
            finally:
                assert process.stdin is not None
                process.stdin.close()  # Which ends it, when it has not ended.
                process.wait()
            errors_.seek(0)
            said = errors_.read()
        if stopped:
            raise Interrupted(
                stopped[0],
                f"stopped by {signal.Signals(stopped[0]).name}; continue with: {self.command}",
            )
        if process.returncode:
            lines = [line for line in said.splitlines() if line.startswith("tfgpu: ")]
            text = (lines or [worker_pool.how(process.returncode)])[-1].removeprefix("tfgpu: ")
            for kind in (RequestError, errors.DataError, errors.ModelFileError):
                if process.returncode == kind.exit_code:
                    raise kind(f"{name}: {text}")
            raise WorkError(f"{name}: {text}")


_ASKED = ("max_trials", "max_minutes", "final_seeds")
"""What a finished search is finished by: with more of them it goes on."""

_OF_THE_WORKER = {"jit_compile", "intra_op_threads", "input"}
"""Decided for a worker's share of the machine; another run decides for itself."""

_HOPELESS = frozenset({RequestError.exit_code, errors.DataError.exit_code})
"""Exit codes of workers that would end in the same way again."""


def _identity(config: TuneSettings, space: Space) -> dict[str, Any]:
    """What makes it this search."""
    # Where the data lie is no part of it either.
    free = config.names(on_resume="ignored") | {"data_dir"}
    settings = {name: value for name, value in config.to_json().items() if name not in free}
    return settings | {f"space {name}": text for name, text in space.identity().items()}


def _check_same(place: Path, config: TuneSettings, space: Space) -> None:
    """Compares with the search in a directory.

    Raises:
        RequestError: It is another one; names the differences.
    """
    found = differences(_read(place / SEARCH), _identity(config, space), ignoring=frozenset())
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if found[5:] else "")
        raise RequestError(
            f"run_dir {str(place)!r} holds another search ({shown}); name another --run_dir, or "
            "give the same settings"
        )


def _work_for_another(
    config: TuneSettings, role: address.Role, console: Console, signals: interrupts.Interrupts
) -> dict[str, Any]:
    """Trains trials of a search whose chief is another process."""
    if config.run_dir is None:
        raise RequestError(
            "--run_dir is missing: name the directory of the chief's search, which all machines "
            "have to see"
        )
    if config.workers == 0:
        raise RequestError("--workers=0 leaves nothing to do here; only the chief can do without")
    space = Space.load(config.space)
    gpus, _ = _devices(config)
    places = worker_pool.places(config.workers, gpus=gpus, cores=worker_pool.cores())
    stopped: list[int] = []
    place = Path(config.run_dir).expanduser()
    config = dataclasses.replace(config, run_dir=str(place))
    if not (place / SEARCH).exists():
        console.say(f"waiting for the chief to begin a search in {place}")
        while not (place / SEARCH).exists():
            time.sleep(_TICK)
    _check_same(place, config, space)
    workers = [
        worker_pool.Worker(
            f"{role.name}-{number}", share, config=config, ip=role.ip, port=role.port
        )
        for number, share in enumerate(places)
    ]
    console.say(f"training for the search of {role.ip}:{role.port}")
    try:
        with signals.deferred(stopped.append):
            for worker in workers:
                worker.start()
            alive = set(workers)
            while alive and not stopped:
                time.sleep(_TICK)
                for worker in list(alive):
                    code = worker.poll()
                    if code is None:
                        continue
                    if code == 0:  # There is no more to do.
                        alive.discard(worker)
                    elif code in _HOPELESS or (
                        code != worker_pool.AGAIN and worker.idle_deaths(0) >= ATTEMPTS
                    ):
                        raise worker.failure(code)
                    else:
                        console.say(f"{worker.name} {worker_pool.how(code)} and is started again")
                        worker.start()
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()
    if stopped:
        raise Interrupted(stopped[0])
    console.say("the search has no more trials for this machine, or was stopped")
    return {}


def _devices(config: TuneSettings) -> tuple[list[str], int]:
    """The GPUs for workers, as CUDA_VISIBLE_DEVICES names them, and the replicas of each trial."""
    import tensorflow as tf

    requested = devices.parse_devices(config.devices)
    physical = tf.config.list_physical_devices("GPU")
    # This process trains nothing.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    if not physical or (requested and requested[0].startswith("CPU")):
        if requested and requested[0].startswith("GPU"):
            raise RequestError(
                f"no device {config.devices} here; there is CPU:0; leave --devices out"
            )
        return [], 1 if config.strategy == "one_device" else config.virtual_devices or max(
            1, len(requested)
        )
    visible = [
        name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()
    ]
    # CUDA sees those before the first that is not there.
    names = visible[: len(physical)] or [str(number) for number in range(len(physical))]
    if requested:
        if config.workers > 1:
            raise RequestError(
                f"--devices={config.devices} and --workers={config.workers} exclude each other: "
                "workers take a GPU each; choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        return names, len(requested)
    if config.strategy == "one_device" or config.workers > 1:
        return names, max(1, config.virtual_devices)
    return names, config.virtual_devices or len(physical)


def _directory(config: TuneSettings, dataset: str) -> Path:
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    name = (
        f"tune-{files.file_name(dataset)}-{files.file_name(config.model)}-"
        f"{time.strftime('%Y%m%d-%H%M%S')}"
    )
    place, number = Path("runs") / name, 1
    while place.exists():
        number += 1
        place = Path("runs") / f"{name}-{number}"
    return place


def _describe(values: dict[str, list[Any]], place: Path) -> None:
    """Tells TensorBoard's HParams tab which settings were searched over, and their ranges."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    settings = []
    for name, found in values.items():
        kinds = {type(value) for value in found}
        domain: Any = None
        if kinds == {float}:
            domain = api.RealInterval(found[0], found[-1])
        elif kinds == {int}:
            domain = api.IntInterval(found[0], found[-1])
        elif len(kinds) == 1 and kinds <= {str, bool}:
            domain = api.Discrete(found)
        settings.append(api.HParam(name, domain))
    metrics = [
        api.Metric(f"result/{name}", display_name=name)
        for name in ("val_accuracy", "val_loss", "accuracy", "loss", "samples_per_second")
    ]
    writer = tf.summary.create_file_writer(str(place))
    with writer.as_default():
        api.hparams_config(hparams=settings, metrics=metrics)
    writer.close()


def _spreads(final: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of what the retrainings came to."""
    found: dict[str, Any] = {}
    for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss"):
        values = [run[name] for run in final if run[name] is not None]
        found[name] = statistics.mean(values) if values else None
        found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def _summary(result: dict[str, Any], place: Path) -> str:
    """The closing lines."""
    objective = result["objective"]
    lines = [
        f"{result['trials']} trials in {duration(result['search_seconds'])}: "
        f"{result['completed']} completed, {result['failed']} failed",
        f"best is trial {result['best_trial']}, {objective} {result['best_score']:.4f}: "
        f"{shown_settings(result['best_values'])}",
    ]
    final = [run for run in result["final"] if run["test_accuracy"] is not None]
    seeds = ", ".join(str(run["seed"]) for run in final)
    if len(final) > 1:
        lines.append(
            f"{objective} of {len(final)} trainings with seeds {seeds}: {result[objective]:.4f}, "
            f"standard deviation {result[f'{objective}_std']:.4f}"
        )
        lines.append(
            f"test accuracy: {result['test_accuracy']:.4f}, "
            f"standard deviation {result['test_accuracy_std']:.4f}"
        )
    elif final:
        lines.append(
            f"with seed {seeds}: {objective} {result[objective]:.4f}, "
            f"test accuracy {result['test_accuracy']:.4f}"
        )
    lines.append(f"retraining and testing took {duration(result['final_seconds'])}")
    path = shlex.quote(str(place / BEST))
    lines.append(f"train with them: tfgpu train --experiment={path}")
    lines.append(f"look at the search: tensorboard --logdir {shlex.quote(str(place))}")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{str(path)!r} cannot be read ({error}); name another --run_dir, or put it back"
        ) from None
    if not isinstance(value, dict):
        raise RequestError(f"{str(path)!r} holds no JSON object; name another --run_dir")
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    with files.replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
