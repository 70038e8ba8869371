"""The settings of a report."""

from tfgpu.cli.settings import Settings, setting
from tfgpu.cli.shared_settings import GENERAL


def _check_runs(value: object) -> str | None:
    right = isinstance(value, tuple) and all(isinstance(each, str) and each for each in value)
    return None if right else "must be paths of run directories"


class ReportSettings(Settings, section="Report"):
    """Write one HTML file about a run, in any state, or about several runs side by side. It needs
    no network and no scripts; no TensorFlow is imported, and no module that a run names.

    Examples:
        # runs/NAME/report.html
        tfgpu report --run_dir=runs/NAME
        # what differs between three runs, and what their seeds make of it: runs/comparison.html
        tfgpu report --run_dir=runs/a,runs/b,runs/c
    """

    sections = ("Report", GENERAL)
    experiment = False

    run_dir: tuple[str, ...] = setting(
        (),
        "name the directory of a run",
        values="PATH[,PATH...]",
        parse=str,
        check=_check_runs,
        required="runs/NAME",
        repeated=True,
    )
    """The directory of a run; several, joined by commas or by naming the flag again, are shown side
    by side."""
    out: str | None = setting(
        None,
        values="PATH",
        default="<run_dir>/report.html, of several comparison.html beside them",
    )
    """The file to write."""
