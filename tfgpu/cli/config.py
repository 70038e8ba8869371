"""The settings of one run: frozen, checked, and the same in memory and in `config.json`.

A `Config` that exists is possible: whatever can be told without looking at devices or data is
checked when it is made, and again by each `dataclasses.replace`. This module knows nothing of
flags, TensorFlow or NumPy; its messages only spell a setting the way it is typed.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, Self

from tfgpu.errors import RequestError

STRATEGIES = ("mirrored", "one_device", "multi_worker_mirrored")
INPUTS = ("auto", "resident", "streaming")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
# Keras' own names, in lower case.
OPTIMIZERS = (
    "sgd",
    "adam",
    "adamw",
    "rmsprop",
    "lion",
    "nadam",
    "adagrad",
    "adamax",
    "adadelta",
    "ftrl",
)
OPTIMIZERS_WITH_MOMENTUM = ("sgd", "rmsprop")
LR_SCHEDULES = ("constant", "cosine", "linear")
AUGMENTATIONS = ("crop", "flip")
TENSORBOARD = ("default", "none", "full")
PROGRESS = ("auto", "bar", "plain", "none")
RESUME = ("auto", "never", "must")
SPLITS = ("test", "validation", "train", "all")
PREDICTION_FORMATS = ("table", "jsonl", "csv")
TUNERS = ("hyperband", "bayesian", "random", "grid")
OBJECTIVES = ("val_accuracy", "val_loss")
EXPORT_FORMATS = ("keras", "saved_model", "onnx", "litert", "litert_int8")

# Two runs that differ in these alone are the same run.
NOT_OF_THE_RUN = frozenset({"run_dir", "resume", "verbosity", "progress"})

# A run may be continued with others of these: they decide how it is computed and not what. Its
# result is then no longer the same to the bit.
MAY_CHANGE = frozenset(
    {
        "strategy",
        "devices",
        "virtual_devices",
        "precision",
        "jit_compile",
        "steps_per_execution",
        "intra_op_threads",
        "deterministic",
        "data_dir",
        "input",
        "checkpoint_every",
        "tensorboard",
        "profile",
    }
)

# Seeds and step counters are int32 somewhere below us; nothing sensible is larger.
_LARGEST = 2**31 - 1

_DEVICE = re.compile(r"(CPU|GPU):\d+")
_SYNTHETIC = re.compile(r"synthetic:([1-9]\d*x){2}[1-9]\d*:[1-9]\d*")
_BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the known name nearest to `name`, or ""."""
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.strip().lower(), lowered, n=1)
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""


def as_typed(value: object) -> str:
    """Returns `value` as it is typed after `--flag=`."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What one command is asked to do; the fields of a subclass are that command's flags.

    Whole numbers given for a fraction or a rate become floats, and a list given for `image_size`
    a tuple, so that equal settings are equal objects.

    Raises:
        RequestError: A value, or a combination of values, is impossible.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if field.name == "image_size" and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            if field.type in (float, float | None) and type(value) is int:
                try:
                    object.__setattr__(self, field.name, float(value))
                except OverflowError:
                    self._refuse(field.name, "is too large for a floating-point number")
        self.check()

    def check(self) -> None:
        """Checks each value, then the combinations, as far as neither devices nor data are needed.

        Raises:
            RequestError: Names the setting as it is typed, the constraint and the way out.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Returns what `config.json` holds: only types that JSON keeps as they are."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Returns the Config with these settings, and the defaults for those it does not name.

        Args:
            settings: What `to_json` returned, or a part of it.

        Raises:
            RequestError: A name is unknown, or a value is impossible or of the wrong type.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise RequestError(
                    f"{name!r} is not a setting{did_you_mean(str(name), known)}; "
                    "`tfgpu train --help` lists them"
                )
        return cls(**settings)

    def _refuse(self, name: str, why: str) -> NoReturn:
        value = getattr(self, name)
        # Only a file can hold a null where none belongs, so it is shown as it stands there.
        raise RequestError(f"--{name}={'null' if value is None else as_typed(value)}: {why}")

    def _choice(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            near = did_you_mean(value, known) if isinstance(value, str) else ""
            self._refuse(name, f"must be one of {', '.join(known)}{near}")

    def _text(self, name: str, instead: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, str):
            self._refuse(name, f"must be text; {instead}")
        if not value.strip():
            self._refuse(name, f"is empty; {instead}")

    def _whole(self, name: str, *, minimum: int, instead: str) -> None:
        value = getattr(self, name)
        # `bool` is an `int` to Python, and never what was meant here.
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(name, f"must be a whole number of at least {minimum}; {instead}")
        if value < minimum:
            self._refuse(name, f"must be at least {minimum}; {instead}")
        if value > _LARGEST:
            self._refuse(name, f"must be at most {_LARGEST}; {instead}")

    def _number(
        self,
        name: str,
        *,
        instead: str,
        minimum: float | None = None,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        value = getattr(self, name)
        wanted = f"at least {minimum}" if minimum is not None else f"above {above}"
        if below is not None:
            wanted += f" and below {below}"
        # Written so that NaN, which compares false with everything, is refused.
        possible = (
            isinstance(value, float)
            and math.isfinite(value)
            and (minimum is None or value >= minimum)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not possible:
            self._refuse(name, f"must be a number {wanted}; {instead}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Where a command computes."""

    strategy: str = "mirrored"
    devices: str = "all"
    virtual_devices: int = 0

    def _check_device_names(self) -> None:
        """Checks `strategy`, `devices` and `virtual_devices`."""
        self._choice("strategy", STRATEGIES)
        self._text("devices", "write `all`, or a list such as GPU:0,GPU:1")
        if self.devices != "all":
            names = self.devices.split(",")
            for name in names:
                if not _DEVICE.fullmatch(name):
                    self._refuse(
                        "devices",
                        f"{name!r} is not a device; write `all`, or a list such as GPU:0,GPU:1",
                    )
            if len(set(names)) < len(names):
                self._refuse("devices", "names a device twice; name each once")
            if len({name.partition(":")[0] for name in names}) > 1:
                self._refuse("devices", "mixes CPU and GPU; name devices of one kind")
        self._whole("virtual_devices", minimum=0, instead="0 is off")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DeviceSettings):
    """Every setting of a training run; the fields are the flags of `tfgpu train`.

    `None` is "not decided yet": what the data set, the optimizer or the clock decides when the
    run starts, and the model for `width` and `depth`. The exceptions are `clip_norm`,
    `ema_momentum` and `early_stopping`, where `None` is "off", `data_dir`, where it is TFDS's own
    choice, and `checkpoint_every`, where it is one epoch.

    Raises:
        RequestError: A value, or a combination of values, is impossible.
    """

    precision: str = "float32"
    jit_compile: bool | Literal["auto"] = "auto"
    steps_per_execution: int | Literal["auto"] = "auto"
    intra_op_threads: int | Literal["auto"] = "auto"
    deterministic: bool = False

    dataset: str = "digits"
    data_dir: str | None = None
    validation_fraction: float = 0.1
    image_size: tuple[int, int] | None = None  # height, width
    input: str = "auto"
    augment: str | None = None  # "none", or names of AUGMENTATIONS joined by commas

    model: str = "lenet"  # or "package.module:function"
    width: float | None = None  # of the layers, as a multiple; None is what the builder decides
    depth: int | None = None  # convolutions or blocks; likewise

    batch_size: int | None = None  # global: over all replicas
    epochs: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    lr_schedule: str | None = None
    warmup_epochs: float | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None  # of the global norm
    ema_momentum: float | None = None
    gradient_accumulation_steps: int = 1
    early_stopping: int | None = None  # epochs of patience
    seed: int = 0

    run_dir: str | None = None
    resume: str = "auto"
    checkpoint_every: int | None = None  # steps; None is one epoch
    tensorboard: str = "default"
    profile: str | None = None  # "FIRST:LAST", steps of the run counted from 1
    progress: str = "auto"
    verbosity: int = 0

    def check(self) -> None:
        """Checks each value, then the combinations, as far as neither devices nor data are needed.

        Raises:
            RequestError: Names the setting as it is typed, the constraint and the way out.
        """
        self._check_devices()
        self._check_data()
        self._check_training()
        self._check_output()
        self._check_combinations()

    def _check_devices(self) -> None:
        self._check_device_names()
        self._choice("precision", PRECISIONS)
        if not isinstance(self.jit_compile, bool) and self.jit_compile != "auto":
            self._refuse("jit_compile", "must be auto, true or false")
        if self.steps_per_execution != "auto":
            self._whole("steps_per_execution", minimum=1, instead="or `auto`")
        if self.intra_op_threads != "auto":
            self._whole("intra_op_threads", minimum=1, instead="or `auto`")
        if not isinstance(self.deterministic, bool):
            self._refuse("deterministic", "must be true or false")

    def _check_data(self) -> None:
        self._text("dataset", "name a data set, such as digits or folder:PATH")
        if self.dataset == "folder:":
            self._refuse("dataset", "names no folder; write folder:PATH")
        if self.dataset.startswith("synthetic") and not _SYNTHETIC.fullmatch(self.dataset):
            self._refuse(
                "dataset",
                "must be synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES, such as synthetic:32x32x3:10",
            )
        if self.data_dir is not None:
            self._text("data_dir", "name a folder, or leave it out for TFDS's own")
        self._number(
            "validation_fraction", minimum=0, below=1, instead="0 trains on the whole split"
        )
        if self.image_size is not None and not (
            isinstance(self.image_size, tuple)
            and len(self.image_size) == 2
            and all(type(side) is int and 1 <= side <= _LARGEST for side in self.image_size)
        ):
            self._refuse(
                "image_size", "must be two whole numbers of at least 1, height x width, as 32x32"
            )
        self._choice("input", INPUTS)
        if self.augment is not None:
            self._text("augment", f"write none, or names out of {', '.join(AUGMENTATIONS)}")
            if self.augment != "none":
                names = self.augment.split(",")
                for name in names:
                    if name not in AUGMENTATIONS:
                        self._refuse(
                            "augment",
                            f"{name!r} is not an augmentation{did_you_mean(name, AUGMENTATIONS)}; "
                            f"write none, or names out of {', '.join(AUGMENTATIONS)} "
                            "joined by commas",
                        )
                if len(set(names)) < len(names):
                    self._refuse("augment", "names an augmentation twice; name each once")
        self._text("model", "name a model, such as lenet or package.module:function")
        if ":" in self.model and not _BUILDER.fullmatch(self.model):
            self._refuse("model", "is not of the form package.module:function")
        if self.width is not None:
            self._number("width", above=0, instead="leave it out for the model's own")
        if self.depth is not None:
            self._whole("depth", minimum=1, instead="leave it out for the model's own")

    def _check_training(self) -> None:
        if self.batch_size is not None:
            self._whole("batch_size", minimum=1, instead="leave it out for a default")
        if self.epochs is not None:
            self._whole("epochs", minimum=1, instead="leave it out for a default")
        if self.optimizer is not None:
            self._choice("optimizer", OPTIMIZERS)
        if self.learning_rate is not None:
            self._number("learning_rate", above=0, instead="leave it out for a default")
        if self.momentum is not None:
            self._number("momentum", minimum=0, below=1, instead="0 is off")
        if self.weight_decay is not None:
            self._number("weight_decay", minimum=0, instead="0 is off")
        if self.lr_schedule is not None:
            self._choice("lr_schedule", LR_SCHEDULES)
        if self.warmup_epochs is not None:
            self._number("warmup_epochs", minimum=0, instead="0 is off")
        self._number("label_smoothing", minimum=0, below=1, instead="0 is off")
        if self.clip_norm is not None:
            self._number("clip_norm", above=0, instead="leave it out to clip nothing")
        if self.ema_momentum is not None:
            self._number("ema_momentum", minimum=0, below=1, instead="leave it out for no average")
        self._whole("gradient_accumulation_steps", minimum=1, instead="1 is off")
        if self.early_stopping is not None:
            self._whole("early_stopping", minimum=1, instead="leave it out to train every epoch")
        self._whole("seed", minimum=0, instead="0 is the default")

    def _check_output(self) -> None:
        if self.run_dir is not None:
            self._text("run_dir", "name a folder, or leave it out for one under runs/")
        self._choice("resume", RESUME)
        if self.checkpoint_every is not None:
            self._whole("checkpoint_every", minimum=1, instead="leave it out for once an epoch")
        self._choice("tensorboard", TENSORBOARD)
        if self.profile is not None:
            match = isinstance(self.profile, str) and re.fullmatch(r"(\d+):(\d+)", self.profile)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                self._refuse("profile", "must be FIRST:LAST, steps counted from 1, such as 101:110")
            if self.tensorboard == "none":
                self._refuse("profile", "goes with TensorBoard; leave --tensorboard=none out")
        self._choice("progress", PROGRESS)
        self._whole("verbosity", minimum=0, instead="0 is quiet")

    def _check_combinations(self) -> None:
        if self.momentum and self.optimizer not in (None, *OPTIMIZERS_WITH_MOMENTUM):
            raise RequestError(
                f"--momentum={self.momentum} has no meaning for --optimizer={self.optimizer}; "
                f"leave it out, or choose one out of {', '.join(OPTIMIZERS_WITH_MOMENTUM)}"
            )
        if self.early_stopping is not None and self.validation_fraction == 0:
            raise RequestError(
                f"--early_stopping={self.early_stopping} needs validation data, and "
                "--validation_fraction=0 leaves none; raise the fraction or leave early stopping "
                "out"
            )
        if (
            self.warmup_epochs is not None
            and self.epochs is not None
            and self.warmup_epochs > self.epochs
        ):
            raise RequestError(
                f"--warmup_epochs={self.warmup_epochs:g} is longer than the run of "
                f"--epochs={self.epochs}; shorten the one or lengthen the other"
            )

        if self.resume == "must" and self.run_dir is None:
            raise RequestError(
                "--resume=must needs --run_dir: name the directory of the run to continue"
            )


PROBE_AXES: dict[str, tuple[str, ...]] = {
    "library": ("keras", "tfgpu"),
    "strategy": STRATEGIES,
    "precision": PRECISIONS,
    "jit_compile": ("xla", "no_xla"),
    "steps_per_execution": ("1_step", "4_steps"),
    "gradient_accumulation_steps": ("no_accumulation", "accumulation"),
}
"""What `--probe` combines: the words it takes, by the setting they are values of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """What `tfgpu doctor` is to look at: the settings of the training it is asked about, and

    Attributes:
        json: Whether to print JSON.
        probe: Which combinations to try: "none", "all", or words of `PROBE_AXES` joined by
            commas; of each setting that a word belongs to, the named values alone.
        probe_limit: Seconds for each.
    """

    json: bool = False
    probe: str = "none"
    probe_limit: int = 120

    def check(self) -> None:
        """Checks what `Config` checks, and the settings above.

        Raises:
            RequestError: Names the setting as it is typed, the constraint and the way out.
        """
        super().check()
        if not isinstance(self.json, bool):
            self._refuse("json", "must be true or false")
        self._text("probe", "write none, all, or a list of words")
        known = [word for words in PROBE_AXES.values() for word in words]
        if self.probe not in ("none", "all"):
            for word in self.probe.split(","):
                if word not in known:
                    self._refuse(
                        "probe",
                        f"{word!r} is none of {', '.join(known)}{did_you_mean(word, known)}; "
                        "write none, all, or a list out of these joined by commas",
                    )
        self._whole("probe_limit", minimum=1, instead="the default is 120 seconds")


FACTORS = (
    "device",
    "precision",
    "xla",
    "steps_per_execution",
    "input",
    "batch_size",
    "replicas",
)
"""What `tfgpu bench` compares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig(Config):
    """The settings of `tfgpu bench`: those of the baseline, whose defaults are plain, and

    Attributes:
        factors: "all", or names of `FACTORS` joined by commas.
        rounds: How often each configuration is timed.
    """

    # Nothing is left to be decided by the machine, so that nothing is compared by accident.
    jit_compile: bool | Literal["auto"] = False
    steps_per_execution: int | Literal["auto"] = 1
    input: str = "streaming"
    batch_size: int = 128
    epochs: int | None = 1000  # The schedule must not end while the clock runs.

    factors: str = "all"
    rounds: int = 5

    @property
    def chosen_factors(self) -> tuple[str, ...]:
        """The factors to compare, in the order of `FACTORS`."""
        if self.factors == "all":
            return FACTORS
        return tuple(name for name in FACTORS if name in self.factors.split(","))

    @property
    def training(self) -> Config:
        """The settings of the training that is measured, alone."""
        return Config(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        )

    def check(self) -> None:
        """Checks what `Config` checks, and the settings above.

        Raises:
            RequestError: Names the setting as it is typed, the constraint and the way out.
        """
        super().check()
        for name, values in (("jit_compile", "true or false"), ("steps_per_execution", "a number")):
            if getattr(self, name) == "auto":
                self._refuse(name, f"must be {values} here, so that what is compared is known")
        if self.input == "auto":
            self._refuse("input", "must be resident or streaming here")
        if self.batch_size is None:
            self._refuse("batch_size", "must be a number here")
        self._text("factors", f"write all, or names out of {', '.join(FACTORS)}")
        if self.factors != "all":
            for name in self.factors.split(","):
                if name not in FACTORS:
                    self._refuse(
                        "factors",
                        f"{name!r} is not a factor{did_you_mean(name, FACTORS)}; write all, or "
                        f"names out of {', '.join(FACTORS)} joined by commas",
                    )
        self._whole("rounds", minimum=1, instead="5 is the default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """The settings of `tfgpu tune`: those that all trials share, and

    Attributes:
        tuner: One of `TUNERS`.
        space: "default" or a Python file.
        objective: One of `OBJECTIVES`.
        max_trials: Trials at most; None is what suits the tuner.
        max_minutes: For the search, in all processes together; None is no limit.
        workers: Processes on this machine; 0 for a chief whose workers are on other machines.
        final_seeds: Trainings of the best settings at the end.
    """

    tuner: str = "hyperband"
    space: str = "default"
    objective: str = "val_accuracy"
    max_trials: int | None = None
    max_minutes: float | None = None
    workers: int = 1
    final_seeds: int = 3

    @property
    def training(self) -> Config:
        """What all trials share, alone."""
        return Config(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        )

    def check(self) -> None:
        """Checks what `Config` checks, and the settings above.

        Raises:
            RequestError: Names the setting as it is typed, the constraint and the way out.
        """
        super().check()
        self._choice("tuner", TUNERS)
        self._text("space", "write default, or name a Python file")
        self._choice("objective", OBJECTIVES)
        if self.max_trials is not None:
            self._whole("max_trials", minimum=1, instead="leave it out for a default")
        if self.max_minutes is not None:
            self._number("max_minutes", above=0, instead="leave it out for no limit")
        self._whole("workers", minimum=0, instead="1 is the default")
        self._whole("final_seeds", minimum=0, instead="0 retrains nothing")
        if self.validation_fraction == 0:
            raise RequestError(
                "--validation_fraction=0 leaves nothing to compare trials by: the test split is "
                "for the winner alone; raise the fraction"
            )
        if self.strategy == "multi_worker_mirrored":
            self._refuse(
                "strategy",
                "a trial trains on one machine; choose mirrored or one_device, and have other "
                "machines train other trials",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """What every command takes that works on a finished run."""

    run_dir: str | None = None  # None is refused: there is no run to look for
    model: str | None = None  # "package.module:function": its module registers classes of the model
    verbosity: int = 0

    def _check_run(self) -> None:
        """Checks `run_dir`, `model` and `verbosity`."""
        if self.run_dir is None:
            raise RequestError(
                "--run_dir is missing: name the directory of a finished run, such as "
                "--run_dir=runs/NAME"
            )
        self._text("run_dir", "name the directory of a finished run")
        if self.model is not None:
            self._text("model", "leave it out for a model of Keras' own layers")
            if not _BUILDER.fullmatch(self.model):
                self._refuse(
                    "model",
                    "must be package.module:function here, the builder whose module registers "
                    "the model's own layers; leave it out where there are none",
                )
        self._whole("verbosity", minimum=0, instead="0 is quiet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DeviceSettings, RunSettings):
    """Every setting of `tfgpu evaluate`; None is the run's own, or what the devices decide."""

    jit_compile: bool | Literal["auto"] = "auto"
    dataset: str | None = None
    data_dir: str | None = None
    split: str = "test"
    batch_size: int | None = None  # global: over all replicas
    out: str | None = None
    json: bool = False

    def check(self) -> None:
        """See `Settings.check`."""
        self._check_run()
        self._check_device_names()
        if not isinstance(self.jit_compile, bool) and self.jit_compile != "auto":
            self._refuse("jit_compile", "must be auto, true or false")
        if self.strategy == "multi_worker_mirrored":
            self._refuse("strategy", "evaluates on one machine; choose mirrored or one_device")
        for name in ("dataset", "data_dir", "out"):
            if getattr(self, name) is not None:
                self._text(name, "leave it out for the default")
        self._choice("split", SPLITS)
        if self.batch_size is not None:
            self._whole("batch_size", minimum=1, instead="leave it out for a default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(DeviceSettings, RunSettings):
    """Every setting of `tfgpu predict`.

    Attributes:
        paths: Images and folders of images; "-" stands for paths read from standard input.
        format: One of `PREDICTION_FORMATS`.
        top_k: Labels of each image in the table.
        batch_size: Images in a batch, over all replicas.
    """

    paths: tuple[str, ...] = ()
    format: str = "table"
    top_k: int = 3
    batch_size: int = 64

    def check(self) -> None:
        """See `Settings.check`."""
        self._check_run()
        self._check_device_names()
        if self.strategy == "multi_worker_mirrored":
            self._refuse("strategy", "predicts on one machine; choose mirrored or one_device")
        if not self.paths:
            raise RequestError(
                "no images: name files or folders, or - to read their paths from standard input"
            )
        self._choice("format", PREDICTION_FORMATS)
        self._whole("top_k", minimum=1, instead="1 shows the label alone")
        self._whole("batch_size", minimum=1, instead="64 is the default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(RunSettings):
    """Every setting of `tfgpu export`.

    Attributes:
        formats: Names of `EXPORT_FORMATS` joined by commas, or "all".
        out: The directory for the files; None is `export` in the run directory.
        max_difference: Between probabilities, of a file in float32.
        max_accuracy_difference: Between accuracies, a fraction, of a file in int8.
        calibration_examples: Training images that the ranges of int8 are taken from.
        dataset: None is the run's own.
        data_dir: None is the run's own.
    """

    formats: str = "all"
    out: str | None = None
    max_difference: float = 1e-4
    max_accuracy_difference: float = 0.01
    calibration_examples: int = 256
    dataset: str | None = None
    data_dir: str | None = None

    @property
    def chosen_formats(self) -> tuple[str, ...]:
        """The formats to write, in the order of `EXPORT_FORMATS`."""
        names = EXPORT_FORMATS if self.formats == "all" else self.formats.split(",")
        return tuple(name for name in EXPORT_FORMATS if name in names)

    def check(self) -> None:
        """See `Settings.check`."""
        self._check_run()
        known = ", ".join(EXPORT_FORMATS)
        self._text("formats", f"write all, or names out of {known}")
        if self.formats != "all":
            names = self.formats.split(",")
            for name in names:
                if name not in EXPORT_FORMATS:
                    self._refuse(
                        "formats",
                        f"{name!r} is not a format{did_you_mean(name, EXPORT_FORMATS)}; write "
                        f"all, or names out of {known} joined by commas",
                    )
            if len(set(names)) < len(names):
                self._refuse("formats", "names a format twice; name each once")
        for name in ("out", "dataset", "data_dir"):
            if getattr(self, name) is not None:
                self._text(name, "leave it out for the default")
        self._number("max_difference", minimum=0, instead="1e-4 is the default")
        self._number("max_accuracy_difference", minimum=0, instead="0.01 is one point, the default")
        self._whole("calibration_examples", minimum=1, instead="256 is the default")
