"""Checks of the data set, the folders that are written to, and their disks."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from tfgpu.cli.config import DoctorConfig
from tfgpu.doctor.findings import Finding
from tfgpu.doctor.framework import Framework

# Below the first a download or a checkpoint may not fit, below the second nothing does.
_LITTLE_DISK, _NO_DISK = 5 << 30, 200 << 20

_finding = functools.partial(Finding, "Data")


def data_folder(config: DoctorConfig) -> Path:
    """Returns where TFDS keeps its data sets: by flag, by variable, or by default."""
    chosen = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def check_folders(config: DoctorConfig, data_dir: Path) -> tuple[str | None, list[Finding]]:
    """Checks that data and run folders can be written to, and the free space of their disks.

    Returns:
        An existing folder where TFDS can try to write, or None; and findings.
    """
    found = []
    writable: str | None = None
    if config.dataset.startswith("folder:"):
        path = Path(config.dataset.removeprefix("folder:")).expanduser()
        try:
            images = sum(1 for _ in path.iterdir())
        except OSError as error:
            found.append(
                _finding(
                    "images",
                    "problem",
                    f"{path}: {error.strerror}",
                    "name a folder that can be read with --dataset=folder:PATH",
                )
            )
        else:
            found.append(_finding("images", "ok", f"{path}, {images} entries"))
    else:
        finding, writable = _check_folder("data folder", data_dir, "--data_dir")
        if finding.status == "problem" and data_dir.is_dir() and os.access(data_dir, os.R_OK):
            # Prepared data sets can still be read from it.
            finding = _finding("data folder", "warning", finding.value, finding.remedy)
        found.append(finding)
        if config.dataset != "digits" and ":" not in config.dataset:
            found.append(_check_prepared(config.dataset, data_dir))
    found.append(_check_folder("run folder", Path(config.run_dir or "runs"), "--run_dir")[0])
    return writable, found


def _check_prepared(dataset: str, data_dir: Path) -> Finding:
    """Checks that a data set of TFDS is prepared; its contents are not read."""
    if any(data_dir.joinpath(*dataset.split("/")).rglob("dataset_info.json")):
        return _finding(dataset, "ok", f"prepared in {data_dir}")
    return _finding(
        dataset,
        "warning",
        f"not prepared in {data_dir}: the first training downloads it, if TFDS knows it",
        "without a network, prepare it where there is one and name its folder with --data_dir",
    )


def _check_folder(item: str, path: Path, flag: str) -> tuple[Finding, str | None]:
    """Tries to write to a folder, or to its nearest existing parent."""
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
        return _finding(item, "problem", value, remedy), None
    value = f"{path}, {free / 2**30:.1f} GiB free" + (
        "" if existing == path.absolute() else ", made when needed"
    )
    if free < _NO_DISK:
        return _finding(item, "problem", value, f"free some space, or {flag}=PATH"), None
    if free < _LITTLE_DISK:
        advice = f"free some space, or {flag}=PATH on another disk"
        return _finding(item, "warning", value, advice), str(existing)
    return _finding(item, "ok", value), str(existing)


def check_tfds(framework: Framework, dataset: str, folder: str | None) -> list[Finding]:
    """Checks that TFDS could write and read a data set."""
    if folder is None or framework.error:
        return []
    if framework.tfds_error:
        return [
            _finding(
                "TFDS",
                "problem" if not dataset.startswith("folder:") else "warning",
                f"cannot write and read a set in {folder}: {framework.tfds_error}",
                "name another place with --data_dir",
            )
        ]
    return [_finding("TFDS", "ok", "wrote and read a small set there")]
