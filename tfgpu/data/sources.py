"""The one entry to stored data: the name of a data set becomes a `Source`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable

from tfgpu.data.records import Schema, Source
from tfgpu.errors import RequestError

_READER = re.compile(r"(?P<prefix>[a-z][a-z0-9]*):(?P<rest>.*)", re.DOTALL)
_VERSION = re.compile(r"[\d*.]+")


def open_source(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: tuple[int, int] | None = None,
    check: Callable[[Schema], object] = lambda schema: None,
) -> Source:
    """Opens a data set by name. No record is decoded yet.

    A name of the form `PREFIX:REST` is read by `tfgpu.data.PREFIX_source`, if there is such a
    module: its function `open_source(rest)` returns a `Source`.

    Args:
        name: `digits`; a TFDS name such as `cifar10`, `name/config` or `name:version`;
            `folder:PATH`; `synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES`; or `PREFIX:REST`.
        data_dir: Where TFDS sets lie prepared; None for TFDS_DATA_DIR, else TFDS's own default.
        image_size: (height, width) that images will be brought to; None for the data's own.
        check: Refuses features, with a `RequestError`, before anything is downloaded.

    Raises:
        RequestError: An unknown name, or what `check` refuses.
        DataError: The data cannot be had or is damaged.
        WorkError: The disk is full.
    """
    if data_dir and "://" in data_dir:
        raise RequestError(f"data_dir must be a local directory, not {data_dir!r}")
    # Each source imports what only it needs: a folder works without TFDS.
    if name.startswith("folder:"):
        from tfgpu.data.folder import open_folder

        path = name.removeprefix("folder:")
        if not path:
            raise RequestError("folder: needs a path, such as folder:images")
        return open_folder(path)
    if name.startswith("synthetic:"):
        from tfgpu.data.synthetic import open_synthetic

        return open_synthetic(name, image_size=image_size)
    if name == "digits":
        from tfgpu.data.digits import open_digits

        return open_digits(data_dir=data_dir)
    match = _READER.fullmatch(name)
    if match and not _VERSION.fullmatch(match["rest"]):
        module = f"tfgpu.data.{match['prefix']}_source"
        if importlib.util.find_spec(module) is not None:
            if not match["rest"]:
                raise RequestError(f"{name!r} names nothing behind the colon")
            source: Source = importlib.import_module(module).open_source(match["rest"])
            return source
    if os.path.isdir(name) and os.sep in name:
        raise RequestError(f"{name!r} is a directory: give it as folder:{name}")
    from tfgpu.data.tfds_source import open_name

    return open_name(name, data_dir=data_dir, check=check)


def is_prepared(name: str) -> bool:
    """Whether a name is of a set that TFDS keeps prepared, and not of files or made-up data."""
    match = _READER.fullmatch(name)
    return not match or bool(_VERSION.fullmatch(match["rest"]))
