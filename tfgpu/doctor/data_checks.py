"""Checks of the data set, the folders that are written to, and their disks."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from tfgpu.doctor.findings import Finding, Section, Status
from tfgpu.doctor.framework import Framework
from tfgpu.doctor.settings import DoctorSettings

# Below the first a download or a checkpoint may not fit, below the second nothing does.
_LITTLE_DISK, _NO_DISK = 5 << 30, 200 << 20


def data_folder(config: DoctorSettings) -> Path:
    """Returns where TFDS keeps its data sets: by flag, by variable, or by default."""
    chosen = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def check_folders(config: DoctorSettings, data_dir: Path) -> tuple[str | None, list[Finding]]:
    """Checks that data and run folders can be written to, and the free space of their disks.

    Returns:
        An existing folder where TFDS can try to write, or None; and findings.
    """
    found = Section("Data")
    writable: str | None = None
    if config.dataset.startswith("folder:"):
        path = Path(config.dataset.removeprefix("folder:")).expanduser()
        try:
            images = sum(1 for _ in path.iterdir())
        except OSError as error:
            found.add(
                "images",
                "problem",
                f"{path}: {error.strerror}",
                "name a folder that can be read with --dataset=folder:PATH",
            )
        else:
            found.add("images", "ok", f"{path}, {images} entries")
    else:
        status, value, remedy, writable = _check_folder(data_dir, "--data_dir")
        if status == "problem" and data_dir.is_dir() and os.access(data_dir, os.R_OK):
            status = "warning"  # Prepared data sets can still be read from it.
        found.add("data folder", status, value, remedy)
        if config.dataset != "digits" and ":" not in config.dataset:
            _check_prepared(found, config.dataset, data_dir)
    status, value, remedy, _ = _check_folder(Path(config.run_dir or "runs"), "--run_dir")
    found.add("run folder", status, value, remedy)
    return writable, found


def _check_prepared(found: Section, dataset: str, data_dir: Path) -> None:
    """Checks that a data set of TFDS is prepared; its contents are not read."""
    if any(data_dir.joinpath(*dataset.split("/")).rglob("dataset_info.json")):
        return found.add(dataset, "ok", f"prepared in {data_dir}")
    return found.add(
        dataset,
        "warning",
        f"not prepared in {data_dir}: the first training downloads it, if TFDS knows it",
        "without a network, prepare it where there is one and name its folder with --data_dir",
    )


def _check_folder(path: Path, flag: str) -> tuple[Status, str, str, str | None]:
    """Tries to write to a folder, or to its nearest existing parent.

    Returns:
        Status, value and remedy of the finding, and the folder written to; None if unusable.
    """
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    remedy = f"name another place with {flag}, or `chmod u+w {shlex.quote(str(existing))}`"
    try:
        with tempfile.TemporaryFile(dir=existing) as trial:
            trial.write(b"tfgpu")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        value = f"{path} cannot be written: {error.strerror or error}"
        return "problem", value, remedy, None
    value = f"{path}, {free / 2**30:.1f} GiB free" + (
        "" if existing == path.absolute() else ", made when needed"
    )
    if free < _NO_DISK:
        return "problem", value, f"free some space, or {flag}=PATH", None
    if free < _LITTLE_DISK:
        advice = f"free some space, or {flag}=PATH on another disk"
        return "warning", value, advice, str(existing)
    return "ok", value, "", str(existing)


def check_tfds(framework: Framework, dataset: str, folder: str | None) -> list[Finding]:
    """Checks that TFDS could write and read a data set."""
    found = Section("Data")
    if folder is None or framework.error:
        return found
    if framework.tfds_error:
        found.add(
            "TFDS",
            "problem" if not dataset.startswith("folder:") else "warning",
            f"cannot write and read a set in {folder}: {framework.tfds_error}",
            "name another place with --data_dir",
        )
        return found
    found.add("TFDS", "ok", "wrote and read a small set there")
    return found
