"""`tfgpu report` from beginning to end: read the runs, say what is known, write one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import tfgpu
from tfgpu.artifacts import files
from tfgpu.artifacts.run_files import RunFiles
from tfgpu.errors import DISK_FULL, RequestError
from tfgpu.report import charts, comparison, facts
from tfgpu.report.settings import ReportSettings

ONE, SEVERAL = "report.html", "comparison.html"

# Names of classes, columns and files are what users have written: each is escaped.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tfgpu.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def run(config: ReportSettings) -> Path:
    """Writes the report that settings ask for.

    Args:
        config: The settings.

    Returns:
        The file.

    Raises:
        RequestError: A directory holds no run, or the file cannot be written.
        OSError: The disk is full.
    """
    runs = [RunFiles.read(path) for path in _paths(config.run_dir)]
    return write(runs, out=Path(config.out).expanduser() if config.out else None)


def write(runs: Sequence[RunFiles], *, out: Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        runs: What their files say.
        out: The file; None for `report.html` in the run directory, or of several for
            `comparison.html` in the folder that they have in common.

    Returns:
        The file.

    Raises:
        RequestError: It cannot be written.
        OSError: The disk is full.
    """
    page = page_of(runs[0]) if len(runs) == 1 else page_of_several(runs)
    if out is None and len(runs) == 1:
        out = runs[0].path / ONE
    elif out is None:
        out = Path(os.path.commonpath([each.path.resolve().parent for each in runs])) / SEVERAL
    if out.is_dir():
        raise RequestError(f"--out={out}: is a directory; name a file, such as {out / ONE}")
    if os.path.lexists(out.parent / "config.json") and out.suffix.lower() not in (".html", ".htm"):
        raise RequestError(
            f"--out={out}: would lie among the files of a run, and could replace one; name an "
            f".html file, such as {out.with_name(ONE)}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(out) as beside:
            # Paths need not be UTF-8, and the page is.
            beside.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise RequestError(
            f"--out={out}: cannot be written ({error.strerror}); name another file"
        ) from error
    return out


def page_of(run: RunFiles) -> str:
    """The HTML page about one run."""
    return _render("one.html", title=f"Run {run.name}", **_about(run))


def page_of_several(runs: Sequence[RunFiles]) -> str:
    """The HTML page about several runs side by side."""
    grouped = comparison.groups(runs)
    spreads = [comparison.spread(group) for group in grouped]
    names = comparison.names_of(runs)
    return _render(
        "several.html",
        title=f"{len(runs)} runs side by side",
        overview=comparison.overview(runs),
        settings=comparison.settings(runs),
        environments=comparison.environments(runs),
        spreads=[table for table in spreads if table is not None],
        curves=comparison.curves(runs),
        runs=[{"name": name, **_about(each)} for name, each in zip(names, runs, strict=True)],
    )


def _about(run: RunFiles) -> dict[str, Any]:
    """All that a page says of a run."""
    events = facts.events_of(run)
    return {
        "run": run,
        "outcome": facts.outcome(run),
        "figures": facts.figures(run),
        "curves": facts.curves(run),
        "scalars": facts.scalar_charts(events),
        "epochs": facts.epochs(run),
        "settings": facts.settings(run),
        "data": facts.data(run),
        "citation": facts.citation(run),
        "samples": facts.samples(events),
        "pictures": facts.pictures(run, events),
        "evaluations": facts.evaluations(run),
        "time_spent": facts.time_spent(run),
        "hardware": facts.hardware(run),
        "environment": facts.environment(run),
        "commands": facts.commands(run),
        "end_of_log": facts.end_of_log(run),
    }


def _render(template: str, **said: Any) -> str:
    return _TEMPLATES.get_template(template).render(
        version=tfgpu.__version__, styles=range(charts.STYLES), **said
    )


def _paths(given: Sequence[str]) -> list[str]:
    """The run directories that a command line names: a comma joins them, or is a part of one."""
    found: list[str] = []
    for each in given:
        found += [each] if Path(each).expanduser().is_dir() else each.split(",")
    return list(dict.fromkeys(path for path in found if path))
