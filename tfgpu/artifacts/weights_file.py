"""Weights from a file into a model, by the names of the layers and the shapes of their weights.

Files are read as arrays. Nothing in them is executed, and no class that they name is looked up: a
file of a model whose classes are not here serves as well as any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpu.artifacts.trained_run import without_model
from tfgpu.errors import ModelFileError, RequestError

if TYPE_CHECKING:
    import h5py
    import keras

_SHOWN = 20
"""Layers that are named of each kind, before "and N more"."""

_RANDOM = "seed_generator"
"""Of the states of random numbers, which are the run's own."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """What became of the weights in a file.

    Attributes:
        taken: Names of the layers that have theirs from the file; those of layers within layers
            have the outer name before them, as in "encoder/dense".
        differing: Layers with other shapes, each with both.
        absent: Layers of the model that are not in the file.
        superfluous: Layers of the file that are not in the model.
    """

    taken: tuple[str, ...]
    differing: tuple[str, ...]
    absent: tuple[str, ...]
    superfluous: tuple[str, ...]

    def described(self, source: str) -> str:
        """A line for the user that names all that was not taken."""
        total = len(self.taken) + len(self.differing) + len(self.absent)
        parts = [f"{len(self.taken)} of {total} layers from {source}"]
        if self.differing:
            parts.append(f"of another shape: {_listed(self.differing)}")
        if self.absent:
            parts.append(f"not in the file: {_listed(self.absent)}")
        if self.superfluous:
            parts.append(f"in the file alone: {_listed(self.superfluous)}")
        return "; ".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def take_weights(model: keras.Model, source: str) -> Taken:
    """Gives each layer of a model the weights that a file has for one of its name and shapes.

    Args:
        model: Built; call it in the scope of its strategy.
        source: A run directory, a `.keras` file, a `.weights.h5` file, or a `.h5` file of Keras 2,
            such as those that `keras.applications` downloads.

    Returns:
        What was taken and what was not.

    Raises:
        RequestError: There is no such file, or it is of no known kind.
        ModelFileError: It is damaged, or has nothing for this model.
    """
    found = _read(source)
    # Keras' own format on both sides: its order of the weights of any layer is then no concern.
    with tempfile.TemporaryDirectory(prefix="tfgpu-weights-") as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        result = _fill(path, found)
        if not result.taken:
            raise ModelFileError(
                f"--weights={source} has nothing for this model: {result.described(source)}"
            )
        model.load_weights(path)
    return result


def _fill(path: Path, found: dict[str, list[np.ndarray]]) -> Taken:
    """Puts arrays into a `.weights.h5` file of a model, where names and shapes agree."""
    import h5py

    taken, differing, absent = [], [], []
    with h5py.File(path, "r+") as file:
        own = dict(_groups(file))
        for name, group in own.items():
            arrays, datasets = found.get(name), _datasets(group)
            if arrays is None:
                absent.append(name)
            elif [array.shape for array in arrays] != [one.shape for one in datasets]:
                shapes = _shapes(arrays), _shapes(datasets)
                differing.append(f"{name} ({shapes[0]} in the file, {shapes[1]} here)")
            else:
                for dataset, array in zip(datasets, arrays, strict=True):
                    dataset[...] = array
                taken.append(name)
    superfluous = [name for name in found if name not in own]
    return Taken(tuple(taken), tuple(differing), tuple(absent), tuple(superfluous))


def _shapes(arrays: Any) -> str:
    return " ".join("x".join(map(str, array.shape)) or "1" for array in arrays)


def _read(source: str) -> dict[str, list[np.ndarray]]:
    """The arrays of each layer in a file, by the layer's name."""
    path = Path(source).expanduser()
    if path.is_dir():
        run, path = path, path / "model.keras"
        if not path.is_file():
            is_run = (run / "config.json").is_file()
            kind = without_model(run) if is_run else "it is no run"
            raise RequestError(f"--weights={source} holds no model.keras: {kind}")
    if not path.is_file():
        raise RequestError(
            f"--weights={source}: there is no such file; name a run directory, or a .keras or "
            ".weights.h5 file"
        )
    if path.suffix not in (".keras", ".h5"):
        raise RequestError(
            f"--weights={source} is neither a run directory nor a .keras, .weights.h5 or .h5 file"
        )
    try:
        with _opened(path) as file:
            if "layer_names" in file.attrs or "model_weights" in file:
                return dict(_of_keras2(file.get("model_weights", file)))
            return {
                name: [_array(one) for one in _datasets(group)] for name, group in _groups(file)
            }
    # h5py raises whatever its parts raise over a damaged file.
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"--weights={source} cannot be read: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    import h5py

    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as file:
        yield file


def _groups(group: h5py.Group, outer: str = "") -> Iterator[tuple[str, h5py.Group]]:
    """What Keras calls "vars" in a file, by the names of the layers around it.

    Parts of a layer stand under the names of its attributes. The layers of a model stand under
    their class and a number; their own names are in "vars".
    """
    import h5py

    own = group.get("vars")
    if isinstance(own, h5py.Group) and any(isinstance(own[key], h5py.Dataset) for key in own):
        yield outer, own
    for key, inner in group.items():
        if key in ("vars", _RANDOM, "optimizer") or not isinstance(inner, h5py.Group):
            continue
        if key != "layers":
            yield from _groups(inner, f"{outer}/{key}" if outer else key)
            continue
        for name, layer in _layers(inner):
            yield from _groups(layer, f"{outer}/{name}" if outer else name)


def _layers(group: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """The layers of a model by name.

    Names that Keras gave go on counting from model to model of a process. They become what they
    would be if this were its first.
    """
    given: dict[str, list[tuple[int, h5py.Group]]] = {}
    for key, layer in group.items():
        name = layer["vars"].attrs.get("name") if "vars" in layer else None
        if not isinstance(name, str):
            name = key
        kind = re.sub(r"_\d+$", "", key)
        counted = re.fullmatch(rf"{re.escape(kind)}(?:_(\d+))?", name)
        if counted is None:
            yield name, layer
        else:
            given.setdefault(kind, []).append((int(counted[1] or 0), layer))
    for kind, layers in given.items():
        for number, (_, layer) in enumerate(sorted(layers, key=lambda each: each[0])):
            yield f"{kind}_{number}" if number else kind, layer


def _datasets(group: h5py.Group) -> list[h5py.Dataset]:
    """The weights of a layer, in order: their keys are numbers, or names of a layer's own."""
    keys = sorted(group, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
    return [group[key] for key in keys]


def _array(dataset: h5py.Dataset) -> np.ndarray:
    # A file may say that its numbers lie in another file, such as one that is none of its business.
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in another file")
    return np.asarray(dataset)


def _of_keras2(file: h5py.Group) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The layers of a file of Keras 2, which lists their names, and their weights', in order."""
    for name in file.attrs["layer_names"]:
        layer = file[name]
        weights = [_array(layer[weight]) for weight in layer.attrs["weight_names"]]
        if weights:
            yield name.decode() if isinstance(name, bytes) else str(name), weights
