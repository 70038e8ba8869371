"""Files in one folder a class, in a folder a split: found, and checked."""

from __future__ import annotations

import os
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tfgpu.data.file_tree import FileTree, Remarks, is_of_system, subdirectories
from tfgpu.errors import DataError, shown


class ClassFolders(NamedTuple):
    """What `find_classes` returns."""

    names: tuple[str, ...]  # Of the classes.
    files: dict[str, tuple[list[str], list[int]]]  # Paths and classes of each split.
    linked: bool  # Whether a file may be in two splits by links.


def find_classes(
    split_dirs: Mapping[str, str], left: Remarks, *, extensions: tuple[str, ...], what: str
) -> ClassFolders:
    """Finds the files of each class, at any depth below its folder, sorted.

    A class is called as its folder, in Unicode's composed form (NFC): macOS decomposes the names of
    folders, and a class must not be two for it. Two folders of one name so are one class.

    Args:
        split_dirs: The directory of each split, which holds one for each class; "train" is among
            them.
        left: Gets what was left out.
        extensions: Of the files, in lower case, with the dot.
        what: They are called in messages, such as "images".

    Raises:
        DataError: A directory cannot be read; there are fewer than two classes; a class has no
            files, or is unknown to the training split; or one file is of two classes, by links.
    """
    trees = {split: FileTree(extensions, root=directory) for split, directory in split_dirs.items()}
    found = {
        split: _classes_of(directory, trees[split], left, extensions)
        for split, directory in split_dirs.items()
    }
    _check(found, split_dirs, trees, extensions=extensions, what=what)
    names = tuple(found["train"])
    for tree in trees.values():
        left.merge(tree.left.to_json())
    return ClassFolders(
        names=names,
        files={
            split: (
                [file for name in names for file in classes.get(name, [])],
                [i for i, name in enumerate(names) for _ in classes.get(name, [])],
            )
            for split, classes in found.items()
        },
        linked=any(tree.has_links for tree in trees.values())
        or any(map(os.path.islink, split_dirs.values())),
    )


def by_parts(paths: Iterable[str]) -> list[str]:
    """Sorts paths by their parts: the order does not depend on the separator of the system."""
    return sorted(paths, key=lambda path: pathlib.PurePath(path).parts)


def _classes_of(
    directory: str, tree: FileTree, left: Remarks, extensions: tuple[str, ...]
) -> dict[str, list[str]]:
    """The sorted files of each class."""
    folders = [
        (shown(unicodedata.normalize("NFC", name)), os.path.join(directory, name))
        for name in subdirectories(directory, left)
    ]
    found: dict[str, list[str]] = {name: [] for name in sorted({name for name, _ in folders})}
    for name, file in tree.find(folders):
        found[name].append(file)
    if found:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not is_of_system(entry.name) and entry.name.lower().endswith(extensions):
                    left.add("in no folder of a class", shown(entry.name))
    return {name: by_parts(files) for name, files in found.items()}


def _check(
    found: Mapping[str, Mapping[str, list[str]]],
    directories: Mapping[str, str],
    trees: Mapping[str, FileTree],
    *,
    extensions: tuple[str, ...],
    what: str,
) -> None:
    where, names = shown(directories["train"]), list(found["train"])
    if not names:
        raise DataError(
            f"the folder {where} holds no folder of a class: {what} belong in "
            f"{os.path.join(where, 'CLASS')}"
        )
    if len(names) == 1:
        raise DataError(
            f"the folder {where} holds one class only, {names[0]!r}: there must be at least "
            "two to tell apart"
        )
    for split, classes in found.items():
        conflicts = trees[split].conflicts
        if conflicts:
            one, other = (os.path.relpath(each, directories[split]) for each in conflicts[0])
            more = f" (and {len(conflicts) - 1:,} more such)" if len(conflicts) > 1 else ""
            raise DataError(
                f"{shown(one)} leads to {shown(other)} in {shown(directories[split])}, which is of "
                f"another class{more}: take one of the two away"
            )
        for name, files in classes.items():
            directory = os.path.join(shown(directories[split]), name)
            if name not in names:
                raise DataError(
                    f"the class {name!r} of {directory} is unknown to {where}, which has "
                    f"{', '.join(names)}"
                )
            if not files:
                left = trees[split].left
                there = f"; left out: {left}" if left.counts else ""
                raise DataError(
                    f"the folder {directory} holds no {what} ({', '.join(extensions)}){there}"
                )
        if not classes:
            raise DataError(f"the folder {shown(directories[split])} holds no folder of a class")
