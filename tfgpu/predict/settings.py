"""The settings of a prediction."""

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import choice, setting
from tfgpu.errors import RequestError


class PredictSettings(shared.DeviceSettings, shared.RunSettings, section="Prediction"):
    """Use a finished run's model: on files, folders, or - for paths on standard input.

    Examples:
        # a folder and a file
        tfgpu predict --run_dir=runs/NAME photos cat.jpg
        # many, for a script
        tfgpu predict --run_dir=runs/NAME --format=jsonl - < list.txt
    """

    sections = ("Run", "Prediction", shared.DEVICES, shared.GENERAL)
    arguments = "FILE_OR_FOLDER ..."
    experiment = False

    paths: tuple[str, ...] = setting(())
    """Files and folders of files; "-" stands for paths read from standard input."""
    format: str = choice("table", ("table", "jsonl", "csv"))
    """A table with the likeliest labels; JSON lines or CSV with every probability."""
    top_k: int = setting(3, "1 shows the label alone")
    """Labels of each image in the table."""
    batch_size: int = setting(64, "64 is the default")
    """Examples in a batch, over all replicas; results come a batch at a time."""
    out: str | None = setting(None, values="PATH", default="<run_dir>/predictions")
    """Where files go, of a task that makes some, such as the masks of a segmentation."""
    users: str | None = setting(None, "name users, joined by commas", values="LIST", default="none")
    """Users to recommend to, in the place of files, of a task that recommends."""

    @property
    def arguments_given(self) -> tuple[str, ...]:
        """What there is to predict for."""
        return self.paths if self.users is None else tuple(self.users.split(","))

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.users is not None and self.paths:
            self.refuse("users", "and files exclude each other; give one of them")
        if not self.paths and self.users is None:
            raise RequestError(
                "nothing to predict: name files or folders, or - to read from standard input"
            )
