"""What a user has to know of the files of a data set: what was left, and what looks odd."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from tfgpu.data.file_tree import Remarks
from tfgpu.data.image_files import TURNED, Header, remark
from tfgpu.errors import shown


def notes(
    left: Remarks,
    paths: Mapping[str, list[str]],
    of_files: Remarks,
    *,
    what: str = "images",
    class_names: Iterable[str] = (),
    linked: bool = False,
) -> tuple[str, ...]:
    """A line for each subject of which there is anything to say.

    Args:
        left: What was left out.
        paths: The files of each split.
        of_files: What there is to say of them.
        what: They are called.
        class_names: The names of the classes.
        linked: Whether a file may be in two splits by links.
    """
    every_path = list(itertools.chain(*paths.values()))
    lines = [f"left out: {left}"] if left.counts else []
    if of_files.counts:
        lines.append(f"{what}: {of_files}")
    escaped = [name for name in class_names if name.startswith("$'")]
    if escaped:
        lines.append(
            f"classes: {len(escaped)} with a name that is not UTF-8 or no single line, called "
            f"{', '.join(escaped[:3])}"
        )
    twins = _twins(class_names)
    if twins:
        lines.append(
            f"classes: {len(twins)} of a name that differs from another's in case alone "
            f"({', '.join(twins[0])}): one class to other systems"
        )
    twins = _twins(every_path)
    if twins:
        one, other = (shown(os.path.basename(path)) for path in twins[0])
        lines.append(
            f"{what}: {len(twins):,} of a name that differs from another's in case or Unicode form "
            f"alone ({one}, {other}): are they copies?"
        )
    if linked and len(paths) > 1:
        lines += _shared(paths)
    return tuple(lines)


def image_remarks(paths: Iterable[str], headers: Iterable[Header]) -> Remarks:
    """What there is to say of images, from their headers."""
    remarks = Remarks()
    for path, header in zip(paths, headers, strict=True):
        remark(header, path, remarks)
    return remarks


def alike_note(class_names: Iterable[str]) -> tuple[str, ...]:
    """A line about classes that one writes in two ways, as people do in a table."""
    twins = _twins(class_names, str.strip)
    if not twins:
        return ()
    one, other = twins[0]
    return (
        f"classes: {len(twins)} of a name that differs from another's in case or blanks alone "
        f"({one!r}, {other!r}): are they one?",
    )


def turned_note(paths: Iterable[str], headers: Iterable[Header], what: str) -> tuple[str, ...]:
    """A line about images that are turned upright and have something drawn over them.

    Args:
        paths: Of the images.
        headers: Of each.
        what: "masks" or "boxes", which may be of the picture as it is stored.
    """
    turns = Remarks()
    for path, header in zip(paths, headers, strict=True):
        if header.turned:
            turns.add(TURNED, shown(os.path.basename(path)))
    return (f"images: {turns}: their {what} must be of the upright pictures",) * bool(turns.counts)


def _twins(
    names: Iterable[str], plainer: Callable[[str], str] = lambda name: name
) -> list[tuple[str, str]]:
    """Pairs that are one name where case, Unicode's normal form and what else do not count."""
    known: dict[str, str] = {}
    pairs = []
    for name in names:
        first = known.setdefault(unicodedata.normalize("NFC", plainer(name)).casefold(), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def _shared(paths: Mapping[str, list[str]]) -> list[str]:
    """A line for each split that has files of the training split, by links."""
    identities = {
        split: {
            (status.st_dev, status.st_ino): path
            for path in some
            if (status := os.stat(path)).st_ino
        }
        for split, some in paths.items()
    }
    lines = []
    for split, others in identities.items():
        same = [path for identity, path in others.items() if identity in identities["train"]]
        if split != "train" and same:
            lines.append(
                f"{split}: {len(same):,} of {len(others):,} files are those of train, by links "
                f"({shown(os.path.basename(same[0]))}, ...): figures on them say little"
            )
    return lines
