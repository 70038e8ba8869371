"""One training run: from settings to a run directory.

Reads top to bottom: session (devices and data), settings, run directory, model, `fit`, test,
files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfgpu import trackers
from tfgpu.artifacts import environment
from tfgpu.artifacts.model_file import save_for_keras
from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.checkpoint.format import Checkpoint
from tfgpu.cli import flags, interrupts
from tfgpu.cli.console import Console, Stopwatch, summary
from tfgpu.cli.dry_run import given
from tfgpu.cluster.membership import Membership, alone
from tfgpu.data import preparation
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import DeviceDataset, evaluation_batches, training_batches
from tfgpu.errors import Error, Interrupted
from tfgpu.machine import runtime
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.models.builders import find_builder
from tfgpu.tasks.loading import Dataset
from tfgpu.train import (
    continuing,
    dry_run,
    fine_tuning,
    mixing,
    recipe,
    reporting,
    tensorboard,
    together,
    tracking,
)
from tfgpu.train.failures import kept, one_line_failures, say_what_is_kept
from tfgpu.train.moving_average import SwapEMAWeights
from tfgpu.train.progress import Progress, Timing
from tfgpu.train.recipe import Resolved
from tfgpu.train.record import RESULT_FIELDS, Record, close_outcome, count_identical, measured
from tfgpu.train.session import Session, data_identity
from tfgpu.train.settings import TrainSettings
from tfgpu.train.tracking import Tracking
from tfgpu.train.views import Views


def run(
    config: TrainSettings,
    *,
    console: Console,
    stopwatch: Stopwatch,
    session: Session | None = None,
    members: Membership | None = None,
    until_epoch: int | None = None,
    test: bool = True,
    pictures: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains, evaluates and saves.

    Args:
        config: The settings as the user gave them.
        console: Where the run speaks.
        stopwatch: Started with the process.
        session: What an earlier run of this process stood on; None for the first.
        members: The processes that train together; None for one by itself.
        until_epoch: Where to pause: the run is saved, with the status "paused", and is continued
            by the next call with a later end, exactly as if it had not paused. None trains all
            epochs.
        test: Whether to end with the test split; without it no image of it is read.
        pictures: Whether TensorBoard gets graphs and pictures too, which take seconds, and not
            scalars and settings alone.
        callbacks: More of them, called after those that keep the run's files.

    Returns:
        What `result.json` holds.

    Raises:
        tfgpu.errors.Error: The request, the data or the work is at fault.
    """
    with interrupts.caught() as signals, preparation.in_passing(config.dry_run):
        members = members or alone()
        if members.is_chief:
            trackers.check(config.log_to)
            tensorboard.check(config)
        if config.model is not None and ":" in config.model:
            find_builder(config.model)  # Before the data, which may take long.
        begun = together.settings_of_chief(members, together.as_recorded(config, members))
        if session is None:
            session = Session.open(begun, stopwatch=stopwatch, members=members)
        else:
            session = session.another(begun)
        machine, data = session.machine, session.data
        together.check_data(members, data, replicas=machine.num_replicas)
        settings = recipe.resolve_for(
            begun, data, replicas=machine.num_replicas, on_gpu=machine.on_gpu
        )
        build = find_builder(settings.model, data.task.models, task=data.task.name)
        mode, mode_reason = together.input_of_all(
            members, *session.choose_input(settings.input, test=test)
        )
        settings = dataclasses.replace(
            settings,
            input=mode,
            jit_compile=machine.jit_compile,
            intra_op_threads=machine.intra_op_threads or "auto",
        )
        finished = together.finished_run(members, config, settings)
        if finished is not None:
            console.say(
                f"{config.run_dir} holds this run, finished; give another --run_dir to repeat it"
            )
            if members.is_chief:
                tracking.send_rest(config, console)
            if config.report and members.is_chief:
                reporting.write(Path(str(config.run_dir)), console)
            return finished
        console.say(
            runtime.describe(
                machine,
                global_batch=settings.batch_size,
                batch_reason="default" if config.batch_size is None else "",
                steps_per_execution=settings.steps_per_execution,
                steps_per_execution_reason="auto" if config.steps_per_execution == "auto" else "",
                input_mode=settings.input,
                input_reason=mode_reason,
            )
        )
        with one_line_failures(settings, machine):
            of_task = data.task.announce(data.spec, settings.to_json())
            for note in (*data.storage_notes, *data.notes, *of_task):
                console.say(note)
            # All that can be wrong with the data, the model and a run that is to be gone on with
            # shows before the first file is written: what is refused stays as it was.
            job = _prepare(settings, session, build, stopwatch)
            newest = continuing.check(
                members, config, model=job.model, batches=job.batches, data=data
            )
            for note in job.notes:
                console.say(note)
            if config.dry_run:
                said = dry_run.describe(
                    settings,
                    given(config, of_the_process=True),
                    data=data,
                    build=build,
                    progress=console.mode,
                    workers=members.size,
                )
                console.say(said)
                return {}
            asked = given(config) | reporting.given_before(config.run_dir)
            directory = together.make_directory(members, config, settings, dataset=data.name)
            again = dataclasses.replace(config, run_dir=str(directory.path), resume="auto")
            job = dataclasses.replace(
                job,
                command=together.continued_by(["tfgpu", "train", *flags.to_argv(again)]),
                newest=newest,
                until_epoch=min(until_epoch or settings.epochs, settings.epochs),
                test=test,
                pictures=pictures,
                callbacks=(*job.callbacks, *callbacks),
                given=asked,
                tracking=tracking.begin(settings, directory, console),
            )
            with (
                reporting.ending(directory, console, wanted=config.report and members.is_chief),
                contextlib.closing(directory),
                tracking.ending(job.tracking),
                together.failing_together(members, job.command),
            ):
                return _record(job, directory, console, stopwatch, signals)


def _record(
    job: _Job,
    directory: RunDirectory,
    console: Console,
    stopwatch: Stopwatch,
    signals: interrupts.Interrupts,
) -> dict[str, Any]:
    """Trains and leaves a result in the run directory, however it ends."""
    config, machine, data = job.config, job.machine, job.data
    outcome: dict[str, Any] = dict.fromkeys(RESULT_FIELDS)
    outcome |= dict.fromkeys(measured(job.metrics))
    outcome |= {
        "status": "running",
        "dataset": config.dataset,
        "model": config.model,
        "parameters": job.model.count_params(),
        "strategy": config.strategy,
        "replicas": machine.num_replicas,
        "precision": config.precision,
        "jit_compile": machine.jit_compile,
        "steps_per_execution": config.steps_per_execution,
        "batch_size": config.batch_size,
        "epochs": 0,
        "steps": 0,
    }
    monitor = None
    if job.members.is_chief and config.hardware_interval is not None:
        monitor = HardwareMonitor.of_devices(machine.devices, interval=config.hardware_interval)
    close = functools.partial(close_outcome, outcome, directory, stopwatch, monitor)
    try:
        # Here and not only around it all, so that the log has what the terminal shows.
        with one_line_failures(config, machine), kept(directory.path):
            together.keep_logs(job.members, directory, console)
            directory.write_environment(
                environment.record(machine, dataset=data.provenance, given=job.given)
            )
            fitted = data.spec.fitted
            if fitted and not (directory.resuming and directory.has_fitted(fitted)):
                directory.write_fitted(fitted)
            if monitor is not None:
                monitor.start()
            _train(job, directory, console, stopwatch, outcome, signals, monitor)
            close("paused" if job.pauses else "finished")
            if job.members.is_chief:
                console.say(summary(outcome, where=stopwatch.seconds, run_dir=directory.path))
    except (KeyboardInterrupt, Interrupted) as stop:
        with contextlib.suppress(OSError):  # The directory has been removed, or the disk is full.
            close("interrupted")
        signal_ = stop.signal if isinstance(stop, Interrupted) else signals.received
        signal_ = signal_ or signal.SIGINT
        message = (
            f"stopped by {signal_.name} after {outcome['steps']} steps; "
            f"continue with: {job.command}"
        )
        with contextlib.suppress(OSError):
            directory.log(f"tfgpu: {message}")
        raise Interrupted(signal_, message) from None
    except BaseException as error:
        with contextlib.suppress(OSError):
            close("failed")
            name = "" if isinstance(error, Error) else f"{type(error).__name__}: "
            see = error.see if isinstance(error, Error) else ""
            directory.log(f"tfgpu: {name}{error}{see}")
        raise
    return outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """A training that is ready to begin.

    Attributes:
        config: With every setting resolved.
        machine: Devices and strategy.
        members: The processes that train together.
        data: The splits.
        model: Compiled.
        metrics: The names of the task's.
        measures: The task's metrics themselves.
        batches: Of training.
        validation: Batches, or None.
        evaluated: Makes batches of a split to evaluate on.
        identical: Counts the inputs of a split that are in training too.
        command: What continues the run.
        newest: The checkpoint to continue from, in the chief; None for a new run.
        until_epoch: Where training ends, or pauses.
        test: Whether the test split is read.
        pictures: Whether TensorBoard gets them, and graphs.
        callbacks: More of them.
        given: The settings that the user gave.
        tracking: What is kept for trackers, in the chief; None for nothing.
        notes: For the user: what became of weights from a file, and what is frozen.
    """

    config: Resolved
    machine: runtime.Runtime
    members: Membership
    data: Dataset
    model: keras.Model
    metrics: tuple[str, ...]
    measures: tuple[Any, ...]
    batches: DeviceDataset
    validation: DeviceDataset | None
    evaluated: Callable[[Examples], DeviceDataset]
    identical: Callable[[Examples], int | None]
    command: str = ""
    newest: Checkpoint | None = None
    until_epoch: int = 0
    test: bool = True
    pictures: bool = True
    callbacks: tuple[keras.callbacks.Callback, ...] = ()
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tracking: Tracking | None = None
    notes: tuple[str, ...] = ()

    @property
    def pauses(self) -> bool:
        """Whether training is to be continued later."""
        return self.until_epoch < self.config.epochs


def _prepare(
    config: Resolved,
    session: Session,
    build: Callable[..., keras.Model],
    stopwatch: Stopwatch,
) -> _Job:
    """Builds the model and reads resident data; writes nothing."""
    machine, data = session.machine, session.data
    strategy = machine.strategy
    resident = config.input == "resident"

    def evaluated(examples: Examples) -> DeviceDataset:
        return evaluation_batches(
            examples,
            batch_size=session.evaluation_batch(examples, batch_size=config.batch_size),
            resident=session.resident(examples) if resident else (),
        )

    recipe.check_updates(config, num_examples=data.train.num_examples)
    stopwatch.switch("model")
    with strategy.scope():
        model = recipe.build_checked(config, build, data)
        tuning = fine_tuning.prepare(model, config)
    stopwatch.switch("data")
    batches = training_batches(
        data.train,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=recipe.transformations(config, data.task),
        resident=session.resident(data.train) if resident else (),
        class_weights=recipe.class_weights(config, data),
        num_classes=mixing.mixed_classes(config, data),
    )
    validation = evaluated(data.validation) if data.validation is not None else None
    stopwatch.switch("model")
    with strategy.scope():
        model.compile(
            optimizer=recipe.make_optimizer(
                config, steps_per_epoch=batches.steps_per_epoch, rates=tuning.rates
            ),
            loss=recipe.make_loss(config, data, model),
            metrics=(metrics := mixing.make_metrics(config, data)),
            steps_per_execution=config.steps_per_execution,
            jit_compile=machine.compile_option,
        )
        if tuning.variables is not None:
            model.optimizer.build(tuning.variables)
    return _Job(
        config=config,
        machine=machine,
        members=session.members,
        data=data,
        model=model,
        metrics=tuple(each if isinstance(each, str) else each.name for each in metrics),
        measures=tuple(metrics),
        batches=batches,
        validation=validation,
        evaluated=evaluated,
        identical=session.identical_inputs,
        notes=tuning.notes,
        callbacks=tuning.callbacks,
    )


def _train(
    job: _Job,
    directory: RunDirectory,
    console: Console,
    stopwatch: Stopwatch,
    outcome: dict[str, Any],
    signals: interrupts.Interrupts,
    monitor: HardwareMonitor | None,
) -> None:
    """Fills `outcome` as it goes, so that an interrupted run can say how far it came."""
    config, model, chief = job.config, job.model, job.members.is_chief
    timing = Timing(
        global_batch=config.batch_size,
        examples=job.data.train.num_examples,
        steps_per_epoch=job.batches.steps_per_epoch,
        stopwatch=stopwatch,
    )
    progress = Progress(console=console, timing=timing, epochs=config.epochs)

    def warn(text: str) -> None:
        console.say(f"warning: {text}")

    backup = BackupAndRestore(
        directory.checkpoints_dir,
        save_freq=config.checkpoint_every or "epoch",
        monitor="val_loss",
        members=job.members,
        warn=warn,
        during=lambda: timing.apart("checkpoints"),
        run=data_identity(job.data),
        known=job.newest,
    )

    def identical(examples: Examples, split: str) -> None:
        if chief:
            unit = job.data.task.unit
            count_identical(
                outcome, split, examples, count=job.identical, unit=unit, console=console
            )

    record = Record(directory, timing, outcome, config, backup, job.metrics, warn)
    callbacks: list[Any] = [timing, progress, record]
    views = None
    if chief:
        views = Views(
            config,
            directory.tensorboard_dir,
            report=job.data.task.report(job.data.spec),
            steps_per_epoch=job.batches.steps_per_epoch,
            pictures=job.pictures,
            monitor=monitor,
            tracking=job.tracking,
            backup=backup,
        )
        callbacks += views.tensorboard
    of_settings = recipe.make_callbacks(config)
    callbacks += [*of_settings, *job.callbacks, backup, *(views.tracking if views else [])]
    callbacks += [c.closing for c in of_settings if isinstance(c, SwapEMAWeights)]
    callbacks.append(timing.closing)
    if directory.resuming and chief:
        console.say(f"continuing the run in {directory.path}")
    if job.data.validation is not None:
        with stopwatch.during("data"):
            identical(job.data.validation, "validation")
    try:
        with (
            say_what_is_kept(backup, command=job.command),
            progress,
            signals.deferred(backup.request_stop),
        ):
            model.fit(
                job.batches,
                steps_per_epoch=job.batches.steps_per_epoch,
                epochs=job.until_epoch,
                validation_data=job.validation,
                shuffle=False,  # The order is the data set's own.
                callbacks=callbacks,
                verbose=0,
            )
        record.check_weights()
    finally:
        backup.close()
    # They came after the last moment at which `fit` could have been left.
    received = job.members.exchange("signals", signals.received)
    if (late := next(filter(None, received), None)) is not None:
        raise Interrupted(late)
    outcome["samples_per_second"] = timing.run_samples_per_second
    outcome["train_seconds"] = timing.train_seconds

    # Before the test, whose images nobody has read yet: one that is damaged must not cost the
    # training.
    calibrated: Mapping[str, Any] = {}
    if job.data.task.calibrate is not None and job.validation is not None:
        with stopwatch.during("validation"):
            calibrated = _calibrated(job)
    fitted = {**job.data.spec.fitted, **calibrated}
    with stopwatch.during("saving"):
        if chief:
            with say_what_is_kept(backup, command=job.command):
                save_for_keras(model, directory.model_path, fitted=fitted)
                if calibrated:
                    directory.write_fitted(fitted)
    # With several workers a prediction needs all of them, and only the chief shows something.
    drawn = job.pictures and job.machine.num_workers == 1 and job.validation is not None
    if views is not None and views.any and drawn:
        with stopwatch.during("tensorboard"):
            views.show_predictions(model, job.validation, step=outcome["steps"])
    if job.test and not job.pauses:
        with stopwatch.during("test"):
            test = model.evaluate(job.evaluated(job.data.test), verbose=0, return_dict=True)
        outcome |= {f"test_{name}": test[name] for name in ("loss", *job.metrics)}
        identical(job.data.test, "test")
    if views is not None:
        names = (*measured(job.metrics), "samples_per_second")
        views.show_result({name: outcome[name] for name in names}, step=outcome["steps"])
    if not chief:  # Before the end, so that the chief has it for the log.
        console.say(f"done; {job.members.name(0)} keeps the run in {directory.path}")
    job.members.finish("the end", None)


def _calibrated(job: _Job) -> Mapping[str, Any]:
    """What the task chooses on the validation split, by its metrics; the same in each worker."""
    assert job.data.task.calibrate is not None
    job.model.evaluate(job.validation, verbose=0)
    measured = {each.name: each for each in job.measures if not isinstance(each, str)}
    return job.data.task.calibrate(job.data.spec, measured)
