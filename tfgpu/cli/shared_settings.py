"""Settings that several commands take: devices, a finished run, its data."""

import re

from tfgpu.cli.settings import BUILDER, Settings, choice, listed, matching, read_text, setting
from tfgpu.errors import RequestError
from tfgpu.machine.strategy import STRATEGIES

DEVICES = "Devices and speed"
GENERAL = "General"

_LIST = "write `all`, or a list such as GPU:0,GPU:1"
_check_names = listed("a device", r"(CPU|GPU):\d+", "all", _LIST)


def _read_devices(value: str) -> str:
    # Device names are written in both cases; one is kept, so that equal runs compare equal.
    return "all" if value.lower() == "all" else read_text(value).upper()


def _check_devices(value: str) -> str | None:
    kinds = {name.partition(":")[0] for name in value.split(",")}
    mixed = "mixes CPU and GPU; name devices of one kind" if len(kinds) > 1 else None
    return _check_names(value) or mixed


class DeviceSettings(Settings, section=DEVICES, on_resume="allowed", tunable=False):
    """Where a command computes."""

    strategy: str = choice("mirrored", STRATEGIES)
    """A copy of the model on every device of this machine, on one device, or on the devices of
    several machines that TF_CONFIG names."""
    devices: str = setting(
        "all", _LIST, values="all|LIST", parse=_read_devices, check=_check_devices
    )
    """Which devices, such as GPU:0,GPU:1. `all` is every GPU, or the CPU where there is none."""
    virtual_devices: int = setting(0, "0 is off", minimum=0)
    """Split the CPU, or the first GPU, into N logical devices, to try several replicas on a
    machine with one; 0 is off."""
    join_timeout: int = setting(600, "600 is the default", values="SECONDS", on_resume="ignored")
    """Seconds to wait for the other workers of multi_worker_mirrored."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.virtual_devices and self.devices != "all":
            raise RequestError(
                f"--virtual_devices={self.virtual_devices} and --devices={self.devices} exclude "
                "each other: the first splits one device, the second names several; leave one out"
            )
        if self.strategy == "one_device" and "," in self.devices:
            raise RequestError(
                f"--strategy=one_device takes one device, but --devices={self.devices} names "
                "several; name one, or choose --strategy=mirrored"
            )


class VerbositySettings(Settings, section=GENERAL, on_resume="ignored", tunable=False):
    """What a command lets through of what others say."""

    verbosity: int = setting(0, "0 is quiet", minimum=0)
    """1 lets TensorFlow's own messages through."""

    @property
    def names_own_code(self) -> bool:
        """Whether a setting may name code of the user's: package.module:NAME, or a Python file."""
        texts = [value for value in vars(self).values() if isinstance(value, str)]
        return any(re.fullmatch(rf"{BUILDER}|.*\.py", text) for text in texts)


class RunSettings(VerbositySettings, section="Run"):
    """What every command takes that works on a finished run."""

    run_dir: str | None = setting(
        None, "name the directory of a finished run", values="PATH", required="runs/NAME"
    )
    """The directory of a finished run."""
    model: str | None = setting(
        None,
        "leave it out for a model of Keras' own layers",
        values="PACKAGE.MODULE:FUNCTION",
        default="none",
        check=matching(
            BUILDER,
            "must be package.module:function here, the builder whose module registers the model's "
            "own layers; leave it out where there are none",
        ),
    )
    """The builder of the run's model, whose module is imported: for a model with layers of your
    own, which the module registers. Other models need none."""
    task: str | None = setting(
        None,
        "leave it out for a task of tfgpu's own",
        values="PACKAGE.MODULE:NAME",
        default="the run's",
        check=matching(
            BUILDER,
            "must be package.module:NAME here, the task of your own that the run was trained for; "
            "leave it out for a task of tfgpu's own",
        ),
    )
    """The run's task where that is one of your own, whose module is imported."""


def _check_dataset(value: str) -> str | None:
    if value == "folder:":
        return "names no folder; write folder:PATH"
    synthetic = r"synthetic:([1-9]\d*x){2}[1-9]\d*:[1-9]\d*"
    if value.startswith("synthetic") and not re.fullmatch(synthetic, value):
        return "must be synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES, such as synthetic:32x32x3:10"
    return None


class DatasetSettings(Settings, section="Data", tunable=False):
    """Which data a command reads."""

    dataset: str = setting(
        "digits",
        "name a data set, such as digits or folder:PATH",
        values="NAME|READER:PATH|synthetic:HxWxC:CLASSES",
        check=_check_dataset,
    )
    """`digits` needs no network; any TFDS set that fits a task, such as cifar10; data of yours:
    folder:PATH with {train,test}/CLASS/*.png or CLASS/*.png (or .wav), or with images/ and masks/,
    coco:FILE.json with boxes, csv:FILE, parquet:FILE or npz:FILE; or made-up images to measure
    with, such as synthetic:224x224x3:1000."""
    data_dir: str | None = setting(
        None,
        "name a folder, or leave it out for TFDS's own",
        values="PATH",
        default="$TFDS_DATA_DIR, else TFDS's own",
        on_resume="allowed",
    )
    """Where TFDS keeps its prepared data sets."""


class RunDataSettings(DatasetSettings, RunSettings, section="Data"):
    """The data that a command reads for a finished run; None is the run's own."""

    dataset: str | None = setting(  # type: ignore[assignment]
        None, "leave it out for the default", default="the run's", check=None
    )
    data_dir: str | None = setting(
        None,
        "leave it out for the default",
        default="the run's, then $TFDS_DATA_DIR, TFDS's own",
    )
