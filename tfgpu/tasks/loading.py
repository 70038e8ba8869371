"""A data set for a task: found, recognised, split, fitted on its training split, and decoded."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfgpu import tasks
from tfgpu.data import sources
from tfgpu.data.examples import Examples
from tfgpu.data.file_notes import alike_note
from tfgpu.data.records import Description, Records, Schema, Source, refuse_lines
from tfgpu.errors import DataError, RequestError, did_you_mean
from tfgpu.models.builders import find_object
from tfgpu.tasks.task import DataSpec, Request, Splits, Task, check_names

# Each purpose has a stream of random numbers of its own, so that one split does not depend on
# whether another was made.
_TEST_STREAM = 1
_VALIDATION_STREAM = 2

_DESCRIBED = dataclasses.fields(Description)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Description):
    """Examples of a task in their splits.

    Attributes:
        task: The task.
        task_name: As in `--task`: of one's own "package.module:NAME".
        spec: Of the data.
        roles: Which feature is what, such as {"x": "image", "y": "label"}.
        train: The examples to train on, without those of validation.
        validation: The part carved from train; None when the fraction is 0.
        test: To be read once, at the end.
        test_split: Which split that is: "test", "validation" or "a tenth of train".
        notes: Lines for the user, of the task.
        storage_notes: Lines for the user, of what the data are stored as.
    """

    task: Task
    task_name: str
    spec: DataSpec
    roles: Mapping[str, str]
    train: Examples
    validation: Examples | None
    test: Examples
    test_split: str
    notes: tuple[str, ...] = ()
    storage_notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class, in the order of the labels."""
        return self.spec.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that x is."""
        shape = self.spec.image_shape
        assert shape is not None
        return shape

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the data come from and how many there are, as JSON holds it."""
        return {
            **{field.name: getattr(self, field.name) for field in _DESCRIBED},
            "task": self.task_name,
            "objective": self.task.objective,
            "maximize": self.task.maximize,
            **self.spec.to_json(),
            "train_examples": self.train.num_examples,
            "validation_examples": self.validation.num_examples if self.validation else 0,
            "test_examples": self.test.num_examples,
            "test_split": self.test_split,
        }


def find_task(name: str) -> Task:
    """Finds a task.

    Args:
        name: One of `tfgpu.tasks.names()`, or "package.module:NAME" for one of the user's own,
            looked for among what is installed, then in the current folder.

    Raises:
        RequestError: There is none, or its module fails.
    """
    if ":" in name:
        task = find_object(name, flag="task")
        if not isinstance(task, Task):
            raise RequestError(
                f"--task={name} is a {type(task).__name__}; name a Task of the module"
            )
        return task
    known = tasks.names()
    if name not in known:
        raise RequestError(
            f"--task={name} is none of {', '.join(known)}{did_you_mean(name, known)}; write "
            "package.module:NAME for a task of your own"
        )
    task = importlib.import_module(f"tfgpu.tasks.{name}").TASK
    assert isinstance(task, Task) and task.name == name
    return task


def load(
    name: str,
    *,
    data_dir: str | None,
    validation_fraction: float,
    image_size: tuple[int, int] | None,
    seed: int,
    task: str | None = None,
    features: Mapping[str, str] | None = None,
    options: Callable[[Task], Mapping[str, Any]] | None = None,
    fitted: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Dataset:
    """Opens a data set by name. No example is decoded yet, but for what a task is fitted on.

    Args:
        name: What `tfgpu.data.sources.open_source` takes.
        data_dir: Where TFDS sets lie prepared; None for TFDS_DATA_DIR, else TFDS's own default.
        validation_fraction: Which part of the training split to hold out, in [0, 1).
        image_size: (height, width) to bring every image to; None for the data's own.
        seed: Decides which examples are held out.
        task: What `find_task` takes; None: the one that the data fit.
        features: Features by role, such as {"x": "image", "y": "label"}, where the user names them.
        options: The task to more of `Request.options`; None takes the task's defaults.
        fitted: What an earlier reading was fitted to, to be used again; None: it is fitted.
        strict: Whether `features` that the set does not have are refused where `fitted` is given;
            else another that is the only one that fits is taken, which a note says.

    Raises:
        RequestError: An unknown name, data that fit no task or several, images of different
            sizes without `image_size`, a fraction that leaves nothing.
        DataError: The data cannot be had or are damaged, or lack what an earlier reading read.
        WorkError: The disk is full.
    """
    if not 0 <= validation_fraction < 1:
        raise RequestError(f"validation_fraction must lie in [0, 1), not {validation_fraction}")
    if image_size is not None and min(image_size) < 1:
        raise RequestError(f"image_size must be positive, not {image_size[0]}x{image_size[1]}")
    given = dict(features or {})
    asked = find_task(task) if task is not None else None
    learnt = asked.fixed(fitted) if asked is not None and fitted else {}

    def chosen(schema: Schema) -> tuple[Task, Mapping[str, str]]:
        if asked is not None and fitted is not None:
            return asked, _of_run(asked, schema, given, learnt, strict=strict)
        check_names(schema, given)
        if asked is not None:
            return asked, asked.choose(schema, given)
        return _recognised(schema, given)

    if asked is not None and asked.open is not None:
        source = asked.open(name)
    else:
        source = sources.open_source(name, data_dir=data_dir, image_size=image_size, check=chosen)
    found, roles = chosen(source.schema)
    chosen_options = {**found.options, **(options(found) if options else {})}
    if found.split is not None:
        parts = found.split(source, roles, validation_fraction, seed, chosen_options)
    else:
        parts = split_at_random(source, roles, validation_fraction, seed, unit=found.unit)
    train, validation, test, test_split = parts
    request = Request(
        schema=source.schema,
        roles=roles,
        train=train,
        options={"image_size": image_size, **chosen_options},
        fitted=fitted,
        seed=seed,
    )
    reading = found.read(request)
    if fitted is None:
        refuse_lines(source.schema.requested, "class", reading.spec.class_names)
    of_train = reading.examples("train", train)
    of_validation = None if validation is None else reading.examples("validation", validation)
    of_test = reading.examples("test", test)
    every = (each for each in (of_train, of_validation, of_test) if each is not None)
    return Dataset(
        **{field.name: getattr(source, field.name) for field in _DESCRIBED},
        task=reading.task or found,
        task_name=task if task is not None else found.name,
        spec=reading.spec,
        roles=roles,
        train=of_train,
        validation=of_validation,
        test=of_test,
        test_split=test_split,
        notes=(
            *reading.notes,
            *_alike(source, reading.spec, fitted),
            *(note for each in every for note in each.notes),
        ),
        storage_notes=(*source.notes, *_renamed(source.schema, given, roles)),
    )


def _alike(source: Source, spec: DataSpec, fitted: Any) -> tuple[str, ...]:
    """What looks like one class in two spellings; folders say it of their own names."""
    if fitted is not None or source.name.startswith("folder:"):
        return ()
    return alike_note(spec.class_names)


def _of_run(
    task: Task,
    schema: Schema,
    given: Mapping[str, str],
    learnt: Mapping[str, str],
    *,
    strict: bool,
) -> Mapping[str, str]:
    """The features that a finished run reads.

    Args:
        task: Of the run.
        schema: Of the data, which may be others than those that it was trained on.
        given: Features by role, as the user named them for training.
        learnt: What `Task.fixed` gives.
        strict: Whether those of `given` must all be there.

    Raises:
        DataError: A feature is missing, or nothing there is what the run learnt from.
    """
    needed = {**(given if strict else {}), **learnt}
    for role, name in needed.items():
        if name not in schema.features:
            what = "its target" if learnt.get(role) == name and role == "y" else f"its {role}"
            raise DataError(
                f"{schema.requested!r} has no column {name!r}, which the model was trained on as "
                f"{what}; it has {', '.join(schema.features)}"
            )
    roles = {role: name for role, name in given.items() if name in schema.features} | needed
    try:
        return task.choose(schema, roles)
    except RequestError as refusal:
        if not given and not learnt:
            raise
        names = ", ".join(f"{role}={name}" for role, name in {**given, **learnt}.items())
        raise DataError(
            f"{schema.requested!r} has {schema.described}, which does not fit what the model was "
            f"trained on ({names}); name data with the same columns"
        ) from refusal


def _renamed(schema: Schema, given: Mapping[str, str], roles: Mapping[str, str]) -> list[str]:
    """Lines about features that the user named and that are called otherwise here."""
    return [
        f"{schema.requested!r} has no feature {name!r}, which the model was trained on as {role}: "
        f"{roles[role]!r} is taken in its place"
        for role, name in given.items()
        if name not in schema.features and role in roles
    ]


def _recognised(schema: Schema, given: Mapping[str, str]) -> tuple[Task, Mapping[str, str]]:
    """The one task that features are for.

    Raises:
        RequestError: There is none, or there are several.
    """
    fitting: list[tuple[Task, Mapping[str, str]]] = []
    reasons: dict[str, str] = {}
    for name in tasks.names():
        task = find_task(name)
        if task.infer:
            try:
                fitting.append((task, task.choose(schema, given)))
            except RequestError as refusal:
                reasons[name] = str(refusal)
    if len(fitting) > 1 and schema.supervised is not None:
        # Where several fit, what the set itself has for input and target is no doubt.
        own = dict(zip(("x", "y"), schema.supervised, strict=True)) | dict(given)
        fitting = [each for each in fitting if dict(each[1]) == own] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        others = ", ".join(name for name in reasons if name != "classification")
        raise RequestError(
            f"{schema.requested!r} is not an image-classification set, and fits no other task "
            f"({others}): it has {schema.described}; name a task of your own with --task, "
            "features with --features=x=NAME,y=NAME, and the column to learn of a table with "
            "--target=COLUMN",
            page="tasks",
        )
    names = [task.name for task, _ in fitting]
    raise RequestError(
        f"{schema.requested!r} has features for several tasks: say which with --task="
        f"{' or --task='.join(names)}; it has {schema.described}",
        page="tasks",
    )


def split_at_random(
    source: Source,
    roles: Mapping[str, str],
    validation_fraction: float,
    seed: int,
    *,
    unit: str,
    label: str | None = None,
) -> Splits:
    """The splits of a source: its test split as it is, validation carved from train by the seed.

    Args:
        source: The data set.
        roles: Features by role.
        validation_fraction: Which part of the training split to hold out, in [0, 1).
        seed: Decides which.
        unit: What examples are called in messages.
        label: The feature of classes or boxes that each split must have, "" for none; None: y, if
            it is one.

    Raises:
        RequestError: There is no training split, or a part would be empty.
        DataError: A class is in another split alone.
    """
    requested = source.schema.requested
    y = roles.get("y")
    if label is None and y is not None:
        feature = source.schema.features[y]
        named = feature.kind in ("number", "id") and bool(feature.class_names)
        label = y if feature.kind in ("class", "boxes") or named else None
    label = label or None
    train = source.split("train", label)
    if train is None:
        raise RequestError(f"{requested!r} has no training split with labels")
    for test_split in ("test", "validation"):
        test = source.split(test_split, label)
        if test is not None:
            break
    else:
        test_split = "a tenth of train"
        if train.num_examples < 2:
            raise RequestError(
                f"{requested!r} has one {unit.removesuffix('s')} only: none is left to test on"
            )
        train, test = carve(train, max(1, round(train.num_examples / 10)), seed, _TEST_STREAM)
    validation = None
    if validation_fraction:
        count = round(train.num_examples * validation_fraction)
        if not 0 < count < train.num_examples:
            raise RequestError(
                f"validation_fraction={validation_fraction} of {train.num_examples} training "
                f"{unit} leaves {count} to validate on and {train.num_examples - count} to train "
                "on: both must be positive (0 turns validation off)"
            )
        train, validation = carve(train, count, seed, _VALIDATION_STREAM)
    return train, validation, test, test_split


def carve(records: Records, count: int, seed: int, stream: int) -> tuple[Records, Records]:
    """Splits off `count` records by the seed; both parts keep their natural order."""
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    random = np.random.RandomState(
        np.random.MT19937(np.random.SeedSequence([seed % 2**64, stream]))
    )
    order = random.permutation(records.num_examples)
    return records.take(np.sort(order[count:])), records.take(np.sort(order[:count]))
