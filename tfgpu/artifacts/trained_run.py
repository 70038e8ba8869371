"""A finished run, read back: its settings, its task, and its model, loaded safely.

What a run directory says is data: no class, function or module that one of its files names is
looked up anywhere but among Keras' own and what the caller has registered.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.errors import DataError, ModelFileError, RequestError
from tfgpu.models.builders import find_builder

if TYPE_CHECKING:
    import keras

    from tfgpu.tasks.loading import Dataset
    from tfgpu.tasks.task import DataSpec, Task

FITTED = "fitted.json"
"""What a task was fitted to on the training split, in the run directory."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What the files of a finished run say.

    Attributes:
        path: The run directory.
        config: Its `config.json`.
        dataset: What `environment.json` says of the data: name, fingerprint, ...
        fitted: What the task was fitted to on the training split.
    """

    path: Path
    config: dict[str, Any]
    dataset: dict[str, Any]
    fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class, in the order of the labels."""
        return tuple(str(name) for name in self.dataset["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what a model of images was trained on."""
        height, width, channels = (int(side) for side in self.dataset["image_shape"])
        return height, width, channels

    @functools.cached_property
    def spec(self) -> DataSpec:
        """Of the data that the model was trained on."""
        from tfgpu.tasks.task import DataSpec

        return DataSpec.from_json(self.dataset, self.fitted)

    def task(self, given: str | None = None) -> Task:
        """The task that the model was trained for.

        Args:
            given: "package.module:NAME" of one of the user's own. It is what the user says, not
                what a file says, and is imported.

        Raises:
            RequestError: The run has a task of the user's own, and it is not given; or it has one
                of tfgpu's own, and another is given.
        """
        from tfgpu.tasks.loading import find_task

        recorded = str(self.dataset.get("task", "classification"))
        if given is None and ":" in recorded:
            raise RequestError(
                f"the run in {self.path} has a task of its own, {recorded}, whose module is "
                f"imported only when it is named: give --task={recorded}",
                page="evaluate#a-runs-files-are-data-not-code",
            )
        if given not in (None, recorded) and ":" not in recorded:
            raise RequestError(
                f"--task={given}: the run in {self.path} was trained for the task {recorded}; "
                "leave --task out, or name another run",
                page="evaluate",
            )
        return find_task(given or recorded)

    @property
    def model_path(self) -> Path:
        """The final model."""
        return self.path / "model.keras"

    @classmethod
    def open(cls, path: str | Path) -> TrainedRun:
        """Reads the files of a run; the model stays on the disk.

        Args:
            path: The run directory.

        Raises:
            RequestError: There is no run.
            ModelFileError: The run has no model yet, or a file of it is damaged.
        """
        place = Path(path).expanduser()
        if not place.is_dir():
            raise RequestError(
                f"--run_dir={path}: there is no such directory; name that of a finished run"
            )
        if not (place / "config.json").is_file():
            raise RequestError(
                f"--run_dir={path}: holds no run (no config.json); name the directory of a "
                "finished run"
            )
        if not (place / "model.keras").is_file():
            raise ModelFileError(f"{place} holds no model.keras: {without_model(place)}")
        config = _read_object(place / "config.json")
        for name in ("dataset", "data_dir", "validation_fraction", "seed", "label_smoothing"):
            if name not in config:
                raise ModelFileError(
                    f"{place / 'config.json'} lacks {name!r}; it is not what tfgpu wrote there"
                )
        dataset: Any = _read_object(place / "environment.json").get("dataset")
        try:
            dataset["fingerprint"]
            if not isinstance(dataset["class_names"], list):
                raise TypeError
            if "x" not in dataset:
                _, _, _ = (int(side) for side in dataset["image_shape"])
        except (KeyError, TypeError, ValueError):
            raise ModelFileError(
                f"{place / 'environment.json'} does not say the class names and the shape of the "
                "images; it is not what tfgpu wrote there"
            ) from None
        fitted = _read_object(place / FITTED) if (place / FITTED).exists() else {}
        return cls(place, config, dataset, fitted)

    def load_model(self, *, builder: str | None = None, task: str | None = None) -> keras.Model:
        """Loads the model, without its optimizer.

        Call it in the scope of a strategy, if there is one.

        Args:
            builder: "package.module:function" whose module registers the model's own classes.
                It is what the user says, not what a file says, and is imported.
            task: The same of a task of the user's own; see `task`.

        Returns:
            A `tfgpu.Model` from x to what the task's loss takes.

        Raises:
            RequestError: The builder cannot be imported.
            ModelFileError: The file is damaged, holds code, or is of another model.
        """
        if builder is not None:
            find_builder(builder)
        found = self.task(task)
        if self.config.get("model") in found.models:
            find_builder(self.config["model"], found.models)  # Registers its layers.
        model = load_safely(self.model_path)
        self._check_outputs(model, found.outputs(self.spec))
        self._check_inputs(model)
        return model

    def _check_outputs(self, model: keras.Model, expected: Any) -> None:
        found = getattr(model, "output_shape", None)
        if expected is None or found == with_batch(expected):
            return
        if isinstance(expected, tuple) and len(expected) == 1 and self.class_names:
            raise ModelFileError(
                f"{self.model_path} gives outputs of shape {found}, but the run has "
                f"{len(self.class_names)} classes; it is another run's model"
            )
        raise ModelFileError(
            f"{self.model_path} gives outputs of shape {found}, but the run's are "
            f"{with_batch(expected)}; it is another run's model"
        )

    def _check_inputs(self, model: keras.Model) -> None:
        from tensorflow import nest

        spec = self.spec
        shapes = [tuple(leaf.shape) for leaf in nest.flatten(spec.x)]
        found = [tuple(each.shape[1:]) for each in getattr(model, "inputs", [])]
        if len(shapes) == len(found) and all(
            map(_fits, sorted(shapes, key=str), sorted(found, key=str))
        ):
            return
        if spec.image_shape is not None:
            raise ModelFileError(
                f"{self.model_path} takes images of shape {found[0] if found else None}, but the "
                f"run was trained on {spec.image_shape}; it is another run's model"
            )
        raise ModelFileError(
            f"{self.model_path} takes inputs of shapes {found}, but the run was trained on "
            f"{shapes}; it is another run's model"
        )

    def load_data(
        self, *, dataset: str | None, data_dir: str | None, task: str | None = None
    ) -> Dataset:
        """Opens the run's data set, or another one of the same kind, as the run split it.

        Args:
            dataset: Its name as for `tfgpu train`; None for the run's.
            data_dir: Where TFDS sets lie prepared; None for where the run found its own.
            task: Of the user's own; see `task`.

        Returns:
            Examples as the model takes them; what was fitted is that of the run.

        Raises:
            RequestError: The classes or the inputs are not the model's, or what
                `tfgpu.tasks.loading.load` refuses.
            DataError: The data cannot be had or is damaged.
        """
        from tfgpu.tasks import loading
        from tfgpu.tasks.options import read_options, read_roles

        name: str = dataset or self.config["dataset"]
        own = name == self.config["dataset"]
        if data_dir is None and dataset in (None, self.config["dataset"]):
            data_dir = self.config["data_dir"]
        self.task(task)  # Refuses a task of the user's own that is not given.
        shape = self.spec.image_shape
        try:
            data = loading.load(
                name,
                data_dir=data_dir,
                validation_fraction=self.config["validation_fraction"],
                image_size=shape[:2] if shape is not None else None,
                seed=self.config["seed"],
                task=task or str(self.dataset.get("task", "classification")),
                # Another set may call its features otherwise.
                features=read_roles(self.config.get("features"), self.config.get("target")),
                strict=own,
                options=lambda task: read_options(self.config, task.options, task=task.name),
                fitted=self.fitted,
            )
        except DataError as error:
            if dataset is not None:
                raise
            raise DataError(f"{error} (the run's data set; --dataset names another)") from error
        if data.class_names != self.class_names:
            raise RequestError(
                f"--dataset={name} has other classes than the model of {self.path}: "
                f"{_first_difference(self.class_names, data.class_names)}; name a data set with "
                "the model's classes"
            )
        if shape is not None and data.image_shape[2] != shape[2]:
            raise RequestError(
                f"--dataset={name} has images of {data.image_shape[2]} channels, and the model of "
                f"{self.path} takes {shape[2]}; name a data set with as many"
            )
        if data.spec.x != self.spec.x:
            raise RequestError(
                f"--dataset={name} has other inputs than the model of {self.path} takes "
                f"({data.spec.x} there, {self.spec.x} in the model); name a data set with as many"
            )
        return data


def without_model(place: Path) -> str:
    """Why a run has no model.keras, and the command that helps.

    Args:
        place: The run directory.
    """
    try:
        finished = _read_object(place / "result.json").get("status") == "finished"
    except ModelFileError:
        finished = False
    kept = RunDirectory(place).has_checkpoint
    command = ["tfgpu", "train", f"--experiment={place / 'config.json'}"]
    again = shlex.join([*command, f"--run_dir={place}"])
    if not finished:
        return f"the run is not finished; `{again}` continues it"
    if kept:
        return f"it was removed from a finished run; `{again}` writes it from the last checkpoint"
    other = shlex.join([*command, f"--run_dir={place.with_name(f'{place.name}-again')}"])
    return (
        "it was removed from a finished run, and so were the checkpoints to write it from; put it "
        f"back, or make the run again: `{other}`"
    )


def with_batch(shapes: Any) -> Any:
    """Shapes of outputs with the batch before: (10,) to (None, 10), in dicts too."""
    if isinstance(shapes, Mapping):
        return {name: with_batch(shape) for name, shape in shapes.items()}
    return (None, *shapes)


def _fits(expected: tuple[int, ...], found: tuple[int | None, ...]) -> bool:
    return len(expected) == len(found) and all(
        f in (None, e) for e, f in zip(expected, found, strict=True)
    )


def _first_difference(model: tuple[str, ...], data: tuple[str, ...]) -> str:
    if len(model) != len(data):
        return f"{len(data)} there, {len(model)} in the model"
    label = next(i for i, (a, b) in enumerate(zip(model, data, strict=True)) if a != b)
    return f"label {label} is {data[label]!r} there, {model[label]!r} in the model"


def load_safely(path: Path) -> keras.Model:
    """Loads a `.keras` file, and executes nothing that it says.

    Keras' own safe mode refuses a lambda; here every `Lambda` layer is refused, whose function
    may be any, and every member of the archive that could be a pickle.

    Args:
        path: The file.

    Returns:
        A `tfgpu` model, not compiled.

    Raises:
        ModelFileError: The file is damaged, holds code, or needs a class that nobody registered.
    """
    from tfgpu.engine.model import load_model

    _check_archive(path)
    try:
        return load_model(path, compile=False, safe_mode=True)
    # Keras raises whatever its parts raise over a damaged file.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "Could not locate" in str(error):
            raise ModelFileError(
                f"{path} needs a class that is not Keras' own ({first.partition('. ')[0]}); name "
                "the builder whose module registers it with --model=package.module:function"
            ) from error
        raise ModelFileError(f"{path} cannot be loaded: {first}") from error


def _check_archive(path: Path) -> None:
    """Refuses a file that is no `.keras` archive, or one that brings code with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            missing = [name for name in _KERAS_MEMBERS if name not in names]
            if missing:
                raise ModelFileError(f"{path} is no Keras model: {missing[0]} is not in it")
            for name in names:
                if name in _KERAS_MEMBERS[:2] or name.endswith("/"):
                    continue
                with archive.open(name) as member:
                    head = member.read(8)
                if name == _KERAS_MEMBERS[2]:
                    if head != _HDF5:
                        raise ModelFileError(f"{path}: its {name} is no HDF5 file")
                elif not name.startswith("assets/"):
                    raise ModelFileError(f"{path} holds {name!r}, which no Keras model has")
                elif name.endswith((".pkl", ".pickle")) or _is_pickle(head):
                    raise ModelFileError(
                        f"{path} holds a pickle, {name!r}, which could run any code; it is refused"
                    )
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is no Keras model: {error or type(error).__name__}"
        ) from error
    for part in _objects(config):
        if part.get("class_name") in ("Lambda", "__lambda__"):
            raise ModelFileError(
                f"{path} holds a Lambda layer, which could run any code; it is refused: write it "
                "as a layer of your own"
            )


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 begin with the opcode PROTO and their number.
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object within a JSON value, itself included."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # Not JSON, or not even text.
        raise ModelFileError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is damaged: it holds no JSON object")
    return value
