"""The settings of an export."""

import os
from pathlib import Path

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import names, setting
from tfgpu.errors import RequestError

EXPORT_FILES = {
    "keras": "model.keras",
    "saved_model": "saved_model",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_int8": "model_int8.tflite",
}
"""The name of the file, by format."""

EXPORT_FORMATS = tuple(EXPORT_FILES)


class ExportSettings(shared.RunDataSettings, section="Export"):
    """Write a finished run's model for other runtimes, and compare each file with it.

    Examples:
        # everything
        tfgpu export --run_dir=runs/NAME
        # for TensorFlow Serving
        tfgpu export --run_dir=runs/NAME --formats=saved_model --out=serving
    """

    sections = ("Run", "Export", "Data", shared.GENERAL)
    experiment = False

    formats: str = names("all", EXPORT_FORMATS, "a format")
    """Which files to make: {among}, joined by commas. All but keras and saved_model need
    pip install 'tfgpu[export]'."""
    out: str | None = setting(None, values="PATH", default="<run_dir>/export")
    """Where the files and export.json go."""
    max_difference: float = setting(1e-4, "1e-4 is the default", minimum=0)
    """Between the probabilities of a float32 file and those of the Keras model; a file with a
    greater one is kept as NAME.rejected."""
    max_accuracy_difference: float = setting(
        0.01, "0.01 is one point, the default", minimum=0, values="FRACTION"
    )
    """The same for a float16 or an int8 file, between accuracies: 0.01 is one point."""
    calibration_examples: int = setting(256, "256 is the default")
    """Training images from which the ranges of int8 values are taken."""
    dry_run: bool = setting(False, on_resume="ignored")
    """Print every setting and the files that would be written or replaced, and end there."""

    @property
    def chosen_formats(self) -> tuple[str, ...]:
        """The formats to write, in the order of `EXPORT_FORMATS`."""
        chosen = EXPORT_FORMATS if self.formats == "all" else self.formats.split(",")
        return tuple(name for name in EXPORT_FORMATS if name in chosen)

    def directory(self, run_dir: Path) -> Path:
        """Where the files go.

        Args:
            run_dir: Of the run that is exported.

        Raises:
            RequestError: It is the directory of a run, whose own model.keras would be overwritten.
        """
        if self.out is None:
            return run_dir / "export"
        place = Path(self.out).expanduser()
        if os.path.lexists(place / "config.json"):
            raise RequestError(
                f"--out={self.out} is the directory of a run, whose files an export could "
                f"overwrite; name another, such as {place / 'export'}"
            )
        return place
