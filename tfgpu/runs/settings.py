"""The settings of a list of runs."""

from tfgpu.cli.settings import Settings, choice, setting
from tfgpu.cli.shared_settings import GENERAL
from tfgpu.errors import RequestError

SORTS = ("started", "metric", "time", "status", "name")


class RunsSettings(Settings, section="List"):
    """List runs: their state, the first metric of their task, their time, and how to go on with
    those that did not finish. Folders are searched for runs; `runs` where none is named.

    Examples:
        # everything below runs/
        tfgpu runs
        # the best first, for a script
        tfgpu runs --sort=metric --format=json
        # in which settings two runs differ
        tfgpu runs --compare runs/a runs/b
    """

    sections = ("List", GENERAL)
    arguments = "[FOLDER_OR_RUN ...]"
    experiment = False

    paths: tuple[str, ...] = setting(())
    """Folders of runs, and run directories."""
    sort: str = choice("started", SORTS)
    """The newest, the best, the longest or, by status, those that need attention first; or by
    name."""
    compare: bool = setting(False)
    """Show the settings in which the runs differ, and their figures side by side."""
    format: str = choice("table", ("table", "json"))
    """A table for a person, or JSON with every figure."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if any(not path.strip() for path in self.paths):
            raise RequestError("'' is no path; name a folder of runs, or a run")
