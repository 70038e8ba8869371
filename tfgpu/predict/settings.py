"""The settings of a prediction."""

import dataclasses

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import choice, custom, whole
from tfgpu.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings(shared.DeviceSettings, shared.RunSettings, section="Prediction"):
    """Label images with a finished run's model: files, folders, or - for paths on standard input.

    Examples:
        # a folder and a file
        tfgpu predict --run_dir=runs/NAME photos cat.jpg
        # many, for a script
        tfgpu predict --run_dir=runs/NAME --format=jsonl - < list.txt
    """

    sections = ("Run", "Prediction", shared.DEVICES, shared.GENERAL)
    arguments = "FILE_OR_FOLDER ..."
    experiment = False

    paths: tuple[str, ...] = custom(())
    """Images and folders of images; "-" stands for paths read from standard input."""
    format: str = choice("table", ("table", "jsonl", "csv"))
    """A table with the likeliest labels; JSON lines or CSV with every probability."""
    top_k: int = whole(3, 1, "1 shows the label alone")
    """Labels of each image in the table."""
    batch_size: int = whole(64, 1, "64 is the default")
    """Images in a batch, over all replicas; results come a batch at a time."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        self.refuse_multi_worker("predicts on one machine; choose mirrored or one_device")
        if not self.paths:
            raise RequestError(
                "no images: name files or folders, or - to read their paths from standard input"
            )
