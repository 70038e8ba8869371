"""The settings of an export."""

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import names, number, text, truth, whole

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

    formats: str = names("all", EXPORT_FORMATS, alone="all", one="a format")
    """Which files to make: {among}, joined by commas. All but keras and saved_model need
    pip install 'tfgpu[export]'."""
    out: str | None = text(
        None, "leave it out for the default", values="PATH", default="<run_dir>/export"
    )
    """Where the files and export.json go."""
    max_difference: float = number(1e-4, minimum=0, instead="1e-4 is the default")
    """Between the probabilities of a float32 file and those of the Keras model; a file with a
    greater one is kept as NAME.rejected."""
    max_accuracy_difference: float = number(
        0.01, minimum=0, instead="0.01 is one point, the default", values="FRACTION"
    )
    """The same for a float16 or an int8 file, between accuracies: 0.01 is one point."""
    calibration_examples: int = whole(256, 1, "256 is the default")
    """Training images from which the ranges of int8 values are taken."""
    dry_run: bool = truth(False, on_resume="ignored")
    """Print every setting and the files that would be written or replaced, and end there."""

    @property
    def chosen_formats(self) -> tuple[str, ...]:
        """The formats to write, in the order of `EXPORT_FORMATS`."""
        chosen = EXPORT_FORMATS if self.formats == "all" else self.formats.split(",")
        return tuple(name for name in EXPORT_FORMATS if name in chosen)
