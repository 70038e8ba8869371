"""Reads TensorBoard's event files: scalars, pictures and texts, without TensorFlow.

A file that is being written, or was cut short, gives what is whole in it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, types_pb2

_HEADER, _FOOTER = 12, 4
"""Bytes around a record: length with its checksum, and the checksum of the data."""

PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a tag showed last.

    Attributes:
        content: A PNG file, or text in Markdown.
        description: Of the tag.
        step: Where it was written.
    """

    content: bytes | str
    description: str
    step: int


@dataclasses.dataclass
class Events:
    """What the event files of a folder hold.

    Attributes:
        scalars: By tag, (step, value) in the order of the steps.
        shown: Pictures and texts, by tag.
        descriptions: Of the scalars, by tag.
    """

    scalars: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    shown: dict[str, Shown] = dataclasses.field(default_factory=dict)
    descriptions: dict[str, str] = dataclasses.field(default_factory=dict)


def read(folder: Path) -> Events:
    """Reads all event files right in a folder, in the order of their names, which is that of time.

    Args:
        folder: Such as `tensorboard/train` of a run directory; it need not be there.
    """
    found = Events()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(path):
            # A graph, of megabytes, is a record of its own.
            try:
                event = event_pb2.Event.FromString(record)
            # protobuf's own error, which is no dependency of ours: the rest is damaged too.
            except Exception:
                break
            for value in event.summary.value:
                _add(found, event.step, value)
    for points in found.scalars.values():
        points.sort(key=lambda point: point[0])
    return found


def _records(path: Path) -> Iterator[bytes]:
    # Read at once: a writer that goes on meanwhile only appends.
    data = path.read_bytes()
    start = 0
    while start + _HEADER <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        begins = start + _HEADER
        start = begins + length + _FOOTER
        if start > len(data):
            return
        yield data[begins : begins + length]


def _add(found: Events, step: int, value: Any) -> None:
    plugin = value.metadata.plugin_data.plugin_name
    tensor = value.tensor
    if plugin == "scalars" and tensor.dtype == types_pb2.DT_FLOAT:
        number = _float(tensor)
        if number is not None:
            found.scalars.setdefault(value.tag, []).append((step, number))
            if value.metadata.summary_description:
                found.descriptions[value.tag] = value.metadata.summary_description
    elif plugin == "images" and len(tensor.string_val) > 2:
        content = bytes(tensor.string_val[2])  # After width and height.
        if content.startswith(PNG):
            found.shown[value.tag] = Shown(content, value.metadata.summary_description, step)
    elif plugin == "text" and len(tensor.string_val) == 1:
        text = bytes(tensor.string_val[0]).decode(errors="replace")
        found.shown[value.tag] = Shown(text, value.metadata.summary_description, step)


def _float(tensor: Any) -> float | None:
    if len(tensor.float_val) == 1:
        return float(tensor.float_val[0])
    if len(tensor.tensor_content) == 4:
        (value,) = struct.unpack("<f", tensor.tensor_content)
        return float(value)
    return None
