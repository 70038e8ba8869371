"""The settings of an evaluation."""

from typing import Literal

from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import choice, setting


class EvaluateSettings(shared.DeviceSettings, shared.RunDataSettings, section="Evaluation"):
    """Measure a finished run's model: loss, accuracy, calibration, confusion.

    None is the run's own, or what the devices decide.

    Examples:
        # the test split of the run's own data
        tfgpu evaluate --run_dir=runs/NAME
        # every image of a folder of yours, for a script
        tfgpu evaluate --run_dir=runs/NAME --dataset=folder:photos --split=all --json
    """

    sections = ("Run", "Data", "Evaluation", shared.DEVICES, shared.GENERAL)
    experiment = False

    jit_compile: bool | Literal["auto"] = setting("auto", section=shared.DEVICES)
    """Compile the evaluation with XLA. `auto` is on for a GPU and off for the CPU."""
    split: str = choice("test", ("test", "validation", "train", "all"))
    """Which examples; the validation split is what the run held back, `all` is train, validation
    and test together."""
    views: str = choice("one", ("one", "mirror", "mirror_shift"))
    """Average the outputs of a classifier over views of each image: with its mirror image, and with
    both shifted along the diagonal too."""
    batch_size: int | None = setting(None, word="auto")
    """Images in a step, over all replicas; it changes no result."""
    out: str | None = setting(
        None, values="PATH", default="<run_dir>/evaluation/<dataset>-<split>[-<views>]"
    )
    """Where evaluation.json, the confusion matrix and the reliability diagram go."""
    json: bool = setting(False)
    """Print JSON for a script instead of lines for a person."""
