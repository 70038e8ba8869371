"""The settings of a training run."""

import re
from typing import ClassVar, Literal

from tfgpu import tasks
from tfgpu.cli import shared_settings as shared
from tfgpu.cli.settings import BUILDER, Settings, choice, listed, matching, names, pairs, setting
from tfgpu.data import augmentations
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.machine.runtime import PRECISIONS
from tfgpu.trackers import TRACKERS

OPTIMIZERS = (
    *("sgd", "adam", "adamw", "rmsprop", "lion", "nadam", "adagrad", "adamax", "adadelta", "ftrl"),
)
OPTIMIZERS_WITH_MOMENTUM = ("sgd", "rmsprop")
LR_SCHEDULES = ("constant", "cosine", "linear")
AUGMENTATIONS = augmentations.names()
"""Those of tfgpu's own tasks; a task of the user's may have others."""

_RECIPE = "Training (auto: depends on the data set and the other flags; the run prints its choice)"


def _check_task(value: str) -> str | None:
    known = tasks.names()
    if value in known or re.fullmatch(BUILDER, value):
        return None
    near = did_you_mean(value, known)
    return f"is none of {', '.join(known)}{near}; write package.module:NAME for a task of your own"


def _check_profile(value: object) -> str | None:
    match = isinstance(value, str) and re.fullmatch(r"(\d+):(\d+)", value)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return None
    return "must be FIRST:LAST, steps counted from 1, such as 101:110"


class SpeedSettings(shared.DeviceSettings, section=shared.DEVICES, on_resume="allowed"):
    """How a training is computed."""

    precision: str = choice("float32", PRECISIONS)
    """The Keras dtype policy. The model's output is float32 under each."""
    jit_compile: bool | Literal["auto"] = setting("auto")
    """Compile the forward and backward pass with XLA. `auto` is on for a GPU and off for the
    CPU."""
    steps_per_execution: int | Literal["auto"] = setting("auto")
    """Training steps for each call from Python."""
    intra_op_threads: int | Literal["auto"] = setting("auto", tunable=False)
    """CPU threads that share one operation. `auto` is all cores, divided among the replicas of
    the CPU, and one where steps are too small to share."""
    deterministic: bool = setting(False, tunable=False)
    """Only kernels that give the same bits each time, at some cost in speed."""
    compile_cache: str = setting(
        "auto",
        "write auto, none or a folder",
        values="auto|none|DIR",
        tunable=False,
        on_resume="ignored",
    )
    """Where XLA's compiled programs are kept for the next run. `auto` is `tfgpu/xla` in the user's
    cache directory where there is a GPU."""


class DataSettings(shared.DatasetSettings, section="Data", tunable=False):
    """What is trained on, and what is to be learnt; `image_size` is height and width."""

    task: str | None = setting(
        None,
        "leave it out for the one that the data fit",
        word="auto",
        values="NAME|PACKAGE.MODULE:NAME",
        among=tasks.names(),
        check=_check_task,
        on_resume="allowed",  # Data and model are compared themselves.
    )
    """What is to be learnt: {among}, or a task of yours. `auto` is the one that the data fit, where
    they leave no doubt."""
    features: str | None = pairs(None, "x=image,y=label", word="auto", values="x=NAME,y=NAME")
    """Which features of the data set are input and target. `auto` finds them by their types."""
    target: str | None = setting(
        None, "name a column, or leave it out", word="auto", values="COLUMN"
    )
    """The column of a table that is to be predicted: the same as `y` of `--features`."""
    tokens: str | None = choice(None, ("word", "character"), word="auto")
    """What a text is cut into, for tasks on texts."""
    task_options: str | None = pairs(None, "split=time", word="none")
    """Options of the task's own, which its page lists."""

    validation_fraction: float = setting(
        0.1, "0 trains on the whole split", minimum=0, below=1, values="FRACTION"
    )
    """Part of the training split held back for validation; 0 trains on all of it."""
    image_size: tuple[int, int] | None = setting(None, word="auto")
    """Resize every image to this. `auto` is the data's own size; images of different sizes need
    one."""
    input: str = choice(
        "auto", ("auto", "resident", "streaming"), on_resume="allowed", tunable=True
    )
    """Keep the data on each device, or stream it. `auto` keeps it when it takes under a quarter
    of a device's free memory. Both give the same batches."""
    augment: str | None = setting(
        None,
        f"write none, or names out of {', '.join(AUGMENTATIONS)}",
        word="auto",
        values="none|LIST",
        among=AUGMENTATIONS,
        check=listed("an augmentation", r"(?!none$)[a-z_]\w*", "none"),
        tunable=True,
    )
    """Random changes to the training examples: {among}, joined by commas. `auto` depends on the
    data set."""


class ModelSettings(Settings, section="Model"):
    """What is trained. None of `width` and `depth` is what the builder decides."""

    model: str | None = setting(
        None,
        "name a model, such as lenet or package.module:function",
        word="auto",
        values="NAME|PACKAGE.MODULE:FUNCTION",
        check=matching(rf"[^:]*|{BUILDER}", "is not of the form package.module:function"),
    )
    """A model of the task's (of images with classes lenet, resnet20, wide_resnet, resnet50, and
    those of keras.applications, such as EfficientNetB0), or a function of yours that builds a Keras
    functional model. `auto` is lenet for classification and multilabel, unet for segmentation,
    bag for text, piecewise for tabular, factors or two_tower for recommendation."""
    width: float | None = setting(
        None, "leave it out for the model's own", word="auto", values="FACTOR"
    )
    """Multiplies the channels and units of the hidden layers; `auto` is 1, and 10 for wide_resnet.
    A function of yours gets it as the argument `width`."""
    depth: int | None = setting(None, "leave it out for the model's own", word="auto")
    """Convolutions of lenet, layers with weights of the others; `auto` is 2 for lenet, 28 for
    wide_resnet. A function of yours gets it as the argument `depth`."""
    remat: bool = setting(False, on_resume="allowed")
    """Keep few activations for the backward pass and compute the others again: less memory, more
    time, the same numbers."""


class FineTuningSettings(Settings, section="Fine-tuning"):
    """Where the weights come from, and which of them are trained when."""

    weights: str | None = setting(
        None, "name a run directory or a file", word="none", values="RUN_DIR|FILE", tunable=False
    )
    """Begin with the weights of a finished run (its directory), or of a .keras, .weights.h5 or .h5
    file: each layer takes those of the layer of its name, where the shapes are the same. What is
    not taken is named."""
    freeze: str | None = setting(
        None,
        "name layers, or leave it out",
        word="none",
        values="PATTERNS",
        check=matching(
            r"!?[^\s,!]+(,!?[^\s,!]+)*",
            "must be names or patterns joined by commas, such as 'stage1_*,stem_*' or '*,!logits'",
        ),
    )
    """Layers that are not trained: names joined by commas, with * and ? as in a shell; !NAME takes
    some out again, as in '*,!logits'."""
    unfreeze_at: int | None = setting(
        None, "leave it out to keep them frozen", minimum=2, word="never"
    )
    """The epoch, counted from 1, from which the frozen layers are trained too."""
    unfreeze_learning_rate: float | None = setting(None, word="auto", values="RATE")
    """The highest rate from then on, after a warm-up of its own. `auto` is a tenth of
    --learning_rate."""
    layer_decay: float = setting(1.0, "1 is off", values="FACTOR")
    """Multiplies the learning rate of each layer by this once more the further it is from the
    output; 1 is off."""


class OptimizationSettings(Settings, section=_RECIPE):
    """How it is trained; `batch_size` is global, `early_stopping` in epochs of patience."""

    batch_size: int | None = setting(None, word="auto")
    """Images in a step, over all replicas; which have to divide it evenly."""
    epochs: int | None = setting(None, word="auto")
    """Passes over the training data."""
    optimizer: str | None = choice(None, OPTIMIZERS, word="auto", values="NAME")
    """One of Keras' own: {among}."""
    learning_rate: float | None = setting(None, word="auto", values="RATE")
    """The highest rate: after the warm-up, before the schedule lowers it."""
    momentum: float | None = setting(None, "0 is off", minimum=0, below=1, word="auto")
    """For sgd and rmsprop; at least 0, below 1."""
    weight_decay: float | None = setting(None, "0 is off", minimum=0, word="auto")
    """Decoupled from the gradient, as Keras' optimizers do it; 0 is off."""
    lr_schedule: str | None = choice(None, LR_SCHEDULES, word="auto")
    """How the rate goes on after the warm-up: cosine and linear end at 0."""
    warmup_epochs: float | None = setting(None, "0 is off", minimum=0, word="auto")
    """Epochs, or a fraction of one, over which the rate rises from 0; 0 is off."""
    label_smoothing: float = setting(0.0, "0 is off", minimum=0, below=1, values="FRACTION")
    """Part of each label spread evenly over the classes."""
    class_weight: str = choice("none", ("none", "balanced"))
    """`balanced` weights the loss of a training example by the inverse frequency of its class, so
    that each class counts the same."""
    clip_norm: float | None = setting(None, "leave it out to clip nothing", word="off")
    """Scale gradients down to this norm over all weights."""
    ema_momentum: float | None = setting(
        None, "leave it out for no average", minimum=0, below=1, word="off"
    )
    """Keep an exponential moving average of the weights, and end with it."""
    gradient_accumulation_steps: int = setting(1, "1 is off")
    """Update the weights every N steps, with the mean of their gradients."""
    early_stopping: int | None = setting(None, "leave it out to train every epoch", word="off")
    """Stop after N epochs without a better validation loss."""
    seed: int = setting(0, "0 is the default", minimum=0, tunable=False)
    """Of the weights, the order of the data, the augmentation and the splits."""


class OutputSettings(Settings, section="Output", on_resume="allowed", tunable=False):
    """What a run writes and says."""

    run_dir: str | None = setting(
        None,
        "name a folder, or leave it out for one under runs/",
        values="PATH",
        default="runs/<dataset>-<model>-<time>",
        on_resume="ignored",
    )
    """Where the run writes its settings, metrics, result and model."""
    resume: str = choice("auto", ("auto", "never", "must"), on_resume="ignored")
    """Continue the run that --run_dir holds, exactly where its last checkpoint is. `never` starts
    new runs only, `must` continues only."""
    checkpoint_every: int | None = setting(None, "leave it out for once an epoch", word="epoch")
    """Steps between two checkpoints: what a run that is killed loses at most."""
    tensorboard: str = choice("default", ("default", "none", "full"))
    """What to write for TensorBoard: `full` adds histograms and pictures of every epoch."""
    log_to: str = names("none", TRACKERS, "a tracker")
    """Experiment trackers that get settings, metrics, figures of the hardware, pictures and the
    model, beside TensorBoard: {among}, joined by commas (pip install 'tfgpu[mlflow,wandb]')."""
    profile: str | None = setting(
        None, rule=None, check=_check_profile, word="off", values="FIRST:LAST"
    )
    """Steps to profile, counted from 1, for TensorBoard's Profile tab
    (pip install 'tfgpu[profile]')."""
    hardware_interval: float | None = setting(
        2.0, "off samples nothing", word="off", values="SECONDS"
    )
    """Seconds between two samples of GPU utilisation, memory, power and temperature, processor and
    memory, for result.json and TensorBoard (pip install 'tfgpu[hardware]')."""
    report: bool = setting(False, on_resume="ignored")
    """End with report.html, what `tfgpu report` writes of the run; also when it fails or is
    stopped."""
    dry_run: bool = setting(False, on_resume="ignored")
    """Print every setting after it has been decided, and the files that would be written, and end
    there: nothing is written."""
    progress: str = choice("auto", ("auto", "bar", "plain", "none"), on_resume="ignored")
    """`auto` is a bar on a terminal and plain lines elsewhere."""


# The fields come in the order of the bases from the last to the first.
class TrainSettings(
    shared.VerbositySettings,
    OutputSettings,
    OptimizationSettings,
    FineTuningSettings,
    ModelSettings,
    DataSettings,
    SpeedSettings,
):
    """Train a model on every GPU of this machine, or on its CPU where there is none.

    `None` is "not decided yet": what the data set, the optimizer or the clock decides when the
    run starts, and the model for `width` and `depth`. The exceptions are `clip_norm`,
    `ema_momentum`, `early_stopping` and those of fine-tuning, where `None` is "off", `data_dir`,
    where it is TFDS's own choice, and `checkpoint_every`, where it is one epoch.

    Examples:
        # the main job: handwritten digits, no network
        tfgpu train --strategy=mirrored
        # mixed precision, XLA and several steps per call, together
        tfgpu train --precision=mixed_float16 --jit_compile --steps_per_execution=50
        # your images and your model
        tfgpu train --dataset=folder:photos --image_size=64x64 --model=mymodels:build
        # an earlier run again, for longer
        tfgpu train --experiment=runs/NAME/config.json --epochs=60
    """

    sections: ClassVar[tuple[str, ...]] = (
        *(shared.DEVICES, "Data", "Model", "Fine-tuning", _RECIPE, "Output", shared.GENERAL),
    )

    @property
    def training(self) -> "TrainSettings":
        """The settings of the training alone, of a command that has more of them."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.names()})

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        known = listed("an augmentation", AUGMENTATIONS, "none")
        if self.augment and ":" not in (self.task or "") and (why := known(self.augment)):
            self.refuse("augment", why)
        if self.profile is not None and self.tensorboard == "none":
            self.refuse("profile", "goes with TensorBoard; leave --tensorboard=none out")
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
        if self.epochs is not None and (self.warmup_epochs or 0) > self.epochs:
            raise RequestError(
                f"--warmup_epochs={self.warmup_epochs:g} is longer than the run of "
                f"--epochs={self.epochs}; shorten the one or lengthen the other"
            )
        for name, needed in (("unfreeze_at", "freeze"), ("unfreeze_learning_rate", "unfreeze_at")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                self.refuse(name, f"has no meaning without --{needed}")
        if self.layer_decay > 1:
            self.refuse("layer_decay", "must be at most 1; 1 is off")
        if self.resume == "must" and self.run_dir is None:
            raise RequestError(
                "--resume=must needs --run_dir: name the directory of the run to continue"
            )
