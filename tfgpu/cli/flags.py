"""Flags to Config and back: the only module that touches absl's flags.

Each flag is described once, in a group; a command's page is a choice of groups. The flags are
defined on a `FlagValues` of our own for each parse, so importing this module leaves absl's global
`FLAGS` as it was, and absl's own flags stay out of `--help`.

This module imports neither TensorFlow nor NumPy: `--help` has to answer at once.
"""

import dataclasses
import re
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

import tfgpu
from tfgpu.cli import config as config_lib
from tfgpu.cli import experiment
from tfgpu.cli.config import (
    Config,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    Settings,
    as_typed,
    did_you_mean,
)
from tfgpu.errors import RequestError

_WIDTH = 90

_HELP = {"--help", "-help", "-h", "--help=true"}
_VERSION = {"--version", "-version", "--version=true"}

ENVIRONMENT = """\
  TFDS_DATA_DIR  where TFDS keeps its data sets
  TF_CONFIG      the machines of --strategy=multi_worker_mirrored
  KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT
                 the part of this process in a `tfgpu tune` over several machines
  TFGPU_DEBUG=1  shows the traceback of every error"""

EXIT_CODES = """\
  0    done
  1    finished with a bad verdict, or stopped by a bug
  2    the request is wrong: a bad flag, an unknown name, an impossible combination
  3    the data cannot be had
  4    a checkpoint or a model file cannot be used
  5    the work itself failed: not finite, out of memory, a full disk
  130  stopped by Ctrl-C;  143  stopped by SIGTERM"""


def _text(text: str) -> str:
    # `--run_dir --epochs=3` would otherwise make a folder of that name.
    if text.startswith("--"):
        raise ValueError("is a flag where a value belongs; write --flag=value")
    return text


def _device_list(text: str) -> str:
    # Device names are written in both cases; Config keeps one, so that equal runs compare equal.
    return "all" if text.lower() == "all" else _text(text).upper()


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _truth_or_auto(text: str) -> bool | str:
    if text.lower() not in ("auto", "true", "false"):
        raise ValueError("must be auto, true or false")
    return "auto" if text.lower() == "auto" else text.lower() == "true"


def _whole_or_auto(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ValueError("must be auto or a whole number") from None


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise ValueError("must be HEIGHTxWIDTH, such as 32x32, or one number for a square")
    return int(match[1]), int(match[2] or match[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flag:
    """One flag, as absl and the help page need it.

    Attributes:
        name: The flag's name, and that of its field of Config.
        help: What it means, in a sentence or two.
        values: What may follow the `=`.
        parse: Text to value; raises ValueError with what the value must be.
        unset: What to type for None, which takes back what an experiment file set.
        default: What the help page gives as the default, when the field's own says too little.
        boolean: Whether `--name` and `--noname` stand for true and false.
    """

    name: str
    help: str
    values: str = "TEXT"
    parse: Callable[[str], Any] = _text
    unset: str | None = None
    default: str | None = None
    boolean: bool = False


@dataclasses.dataclass(frozen=True)
class _Group:
    title: str
    flags: tuple[_Flag, ...]


def _one_of(names: Sequence[str]) -> str:
    return "|".join(names)


_DEVICES = _Group(
    "Devices and speed",
    (
        _Flag(
            name="strategy",
            values=_one_of(config_lib.STRATEGIES),
            help="A copy of the model on every device of this machine, on one device, or on the "
            "devices of several machines that TF_CONFIG names.",
        ),
        _Flag(
            name="devices",
            values="all|LIST",
            parse=_device_list,
            help="Which devices, such as GPU:0,GPU:1. `all` is every GPU, or the CPU where there "
            "is none.",
        ),
        _Flag(
            name="virtual_devices",
            values="N",
            parse=_whole,
            help="Split the CPU, or the first GPU, into N logical devices, to try several "
            "replicas on a machine with one; 0 is off.",
        ),
        _Flag(
            name="precision",
            values=_one_of(config_lib.PRECISIONS),
            help="The Keras dtype policy. The model's output is float32 under each.",
        ),
        _Flag(
            name="jit_compile",
            values="auto|true|false",
            parse=_truth_or_auto,
            boolean=True,
            help="Compile the forward and backward pass with XLA. `auto` is on for a GPU and off "
            "for the CPU.",
        ),
        _Flag(
            name="steps_per_execution",
            values="auto|N",
            parse=_whole_or_auto,
            help="Training steps for each call from Python.",
        ),
        _Flag(
            name="intra_op_threads",
            values="auto|N",
            parse=_whole_or_auto,
            help="CPU threads that share one operation. `auto` is all cores, divided among the "
            "replicas of the CPU, and one where steps are too small to share.",
        ),
        _Flag(
            name="deterministic",
            values="true|false",
            parse=_truth,
            boolean=True,
            help="Only kernels that give the same bits each time, at some cost in speed.",
        ),
    ),
)

_DATA = _Group(
    "Data",
    (
        _Flag(
            name="dataset",
            values="NAME|folder:PATH|synthetic:HxWxC:CLASSES",
            help="`digits` needs no network; any TFDS image-classification set, such as cifar10; "
            "a folder of yours: PATH/{train,test}/CLASS/*.png, or PATH/CLASS/*.png; or made-up "
            "images to measure with, such as synthetic:224x224x3:1000.",
        ),
        _Flag(
            name="data_dir",
            values="PATH",
            default="$TFDS_DATA_DIR, else TFDS's own",
            help="Where TFDS keeps its prepared data sets.",
        ),
        _Flag(
            name="validation_fraction",
            values="FRACTION",
            parse=_number,
            help="Part of the training split held back for validation; 0 trains on all of it.",
        ),
        _Flag(
            name="image_size",
            values="auto|SIZE|HEIGHTxWIDTH",
            parse=_size,
            unset="auto",
            help="Resize every image to this. `auto` is the data's own size; images of different "
            "sizes need one.",
        ),
        _Flag(
            name="input",
            values=_one_of(config_lib.INPUTS),
            help="Keep the data on each device, or stream it. `auto` keeps it when it takes under "
            "a quarter of a device's free memory. Both give the same batches.",
        ),
        _Flag(
            name="augment",
            values="auto|none|LIST",
            unset="auto",
            help=f"Random changes to the training images: {', '.join(config_lib.AUGMENTATIONS)}, "
            "joined by commas. `auto` depends on the data set.",
        ),
    ),
)

_MODEL = _Group(
    "Model",
    (
        _Flag(
            name="model",
            values="NAME|PACKAGE.MODULE:FUNCTION",
            help="`lenet`, or a function of yours that builds a Keras functional model.",
        ),
        _Flag(
            name="width",
            values="auto|FACTOR",
            parse=_number,
            unset="auto",
            help="Multiplies the channels and units of the hidden layers; `auto` is 1 for lenet. "
            "A function of yours gets it as the argument `width`.",
        ),
        _Flag(
            name="depth",
            values="auto|N",
            parse=_whole,
            unset="auto",
            help="Convolutions; `auto` is 2 for lenet. A function of yours gets it as the argument "
            "`depth`.",
        ),
    ),
)

_TRAINING = _Group(
    "Training (auto: depends on the data set and the other flags; the run prints its choice)",
    (
        _Flag(
            name="batch_size",
            values="auto|N",
            parse=_whole,
            unset="auto",
            help="Images in a step, over all replicas; which have to divide it evenly.",
        ),
        _Flag(
            name="epochs",
            values="auto|N",
            parse=_whole,
            unset="auto",
            help="Passes over the training data.",
        ),
        _Flag(
            name="optimizer",
            values="auto|NAME",
            unset="auto",
            help=f"One of Keras' own: {', '.join(config_lib.OPTIMIZERS)}.",
        ),
        _Flag(
            name="learning_rate",
            values="auto|RATE",
            parse=_number,
            unset="auto",
            help="The highest rate: after the warm-up, before the schedule lowers it.",
        ),
        _Flag(
            name="momentum",
            values="auto|NUMBER",
            parse=_number,
            unset="auto",
            help=f"For {' and '.join(config_lib.OPTIMIZERS_WITH_MOMENTUM)}; at least 0, below 1.",
        ),
        _Flag(
            name="weight_decay",
            values="auto|NUMBER",
            parse=_number,
            unset="auto",
            help="Decoupled from the gradient, as Keras' optimizers do it; 0 is off.",
        ),
        _Flag(
            name="lr_schedule",
            values="auto|" + _one_of(config_lib.LR_SCHEDULES),
            unset="auto",
            help="How the rate goes on after the warm-up: cosine and linear end at 0.",
        ),
        _Flag(
            name="warmup_epochs",
            values="auto|NUMBER",
            parse=_number,
            unset="auto",
            help="Epochs, or a fraction of one, over which the rate rises from 0; 0 is off.",
        ),
        _Flag(
            name="label_smoothing",
            values="FRACTION",
            parse=_number,
            help="Part of each label spread evenly over the classes.",
        ),
        _Flag(
            name="clip_norm",
            values="off|NUMBER",
            parse=_number,
            unset="off",
            help="Scale gradients down to this norm over all weights.",
        ),
        _Flag(
            name="ema_momentum",
            values="off|NUMBER",
            parse=_number,
            unset="off",
            help="Keep an exponential moving average of the weights, and end with it.",
        ),
        _Flag(
            name="gradient_accumulation_steps",
            values="N",
            parse=_whole,
            help="Update the weights every N steps, with the mean of their gradients.",
        ),
        _Flag(
            name="early_stopping",
            values="off|N",
            parse=_whole,
            unset="off",
            help="Stop after N epochs without a better validation loss.",
        ),
        _Flag(
            name="seed",
            values="N",
            parse=_whole,
            help="Of the weights, the order of the data, the augmentation and the splits.",
        ),
    ),
)

_OUTPUT = _Group(
    "Output",
    (
        _Flag(
            name="run_dir",
            values="PATH",
            default="runs/<dataset>-<model>-<time>",
            help="Where the run writes its settings, metrics, result and model.",
        ),
        _Flag(
            name="resume",
            values=_one_of(config_lib.RESUME),
            help=(
                "Continue the run that --run_dir holds, exactly where its last checkpoint is. "
                "`never` starts new runs only, `must` continues only."
            ),
        ),
        _Flag(
            name="checkpoint_every",
            values="epoch|N",
            parse=_whole,
            unset="epoch",
            help="Steps between two checkpoints: what a run that is killed loses at most.",
        ),
        _Flag(
            name="tensorboard",
            values=_one_of(config_lib.TENSORBOARD),
            help="What to write for TensorBoard: `full` adds histograms and pictures of every "
            "epoch.",
        ),
        _Flag(
            name="profile",
            values="off|FIRST:LAST",
            unset="off",
            help="Steps to profile, counted from 1, for TensorBoard's Profile tab "
            "(pip install 'tfgpu[profile]').",
        ),
        _Flag(
            name="progress",
            values=_one_of(config_lib.PROGRESS),
            help="`auto` is a bar on a terminal and plain lines elsewhere.",
        ),
        _Flag(
            name="verbosity",
            values="N",
            parse=_whole,
            help="1 lets TensorFlow's own messages through.",
        ),
    ),
)

# Flags that are no settings: --experiment is how settings are obtained.
_GENERAL = _Group(
    "General",
    (
        _Flag(
            name="experiment",
            values="FILE",
            default="none",
            help="Settings from a file: FILE.py that defines `config() -> dict` (the file is "
            "run), or an earlier run's config.json (nothing is run). Flags given beside it win.",
        ),
        _Flag(name="help", values="", default="", help="Print this page."),
        _Flag(
            name="version",
            values="",
            default="",
            help="Print the versions of tfgpu, TensorFlow and Keras.",
        ),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Page:
    """What one command takes, and what its `--help` says around the flags."""

    purpose: str
    groups: tuple[_Group, ...]
    examples: tuple[tuple[str, str], ...]
    settings: type[Settings] = Config
    arguments: str = ""  # What may follow the flags; the field `paths` of the settings gets it.

    def flags(self) -> list[_Flag]:
        return [flag for group in self.groups for flag in group.flags]


def _some(group: _Group, *names: str) -> _Group:
    """A group with some of its flags, in its order."""
    return dataclasses.replace(
        group, flags=tuple(flag for flag in group.flags if flag.name in names)
    )


def _probe(text: str) -> str:
    return {"true": "all", "false": "none"}.get(text, text)


_DIAGNOSIS = _Group(
    "Diagnosis",
    (
        _Flag(
            name="json",
            values="true|false",
            parse=_truth,
            boolean=True,
            help="Print JSON for a script instead of lines for a person.",
        ),
        _Flag(
            name="probe",
            values="none|all|LIST",
            parse=_probe,
            boolean=True,
            help="Train a tiny network in every combination, each in a process of its own, with "
            "stock Keras and with tfgpu; --probe alone is all. A list keeps the combinations with "
            f"these values: {'; '.join(', '.join(w) for w in config_lib.PROBE_AXES.values())}.",
        ),
        _Flag(
            name="probe_limit",
            values="SECONDS",
            parse=_whole,
            help="After which a combination counts as one that hangs.",
        ),
    ),
)

_COMPARISON = _Group(
    "Comparison",
    (
        _Flag(
            name="factors",
            values="all|LIST",
            help=f"What to change, one at a time: {', '.join(config_lib.FACTORS)}, joined by "
            "commas.",
        ),
        _Flag(
            name="rounds",
            values="N",
            parse=_whole,
            help="How often each configuration is timed, in turn with the others.",
        ),
    ),
)

_RUN = _Group(
    "Run",
    (
        _Flag(
            name="run_dir",
            values="PATH",
            default="none: it has to be given",
            help="The directory of a finished run.",
        ),
        _Flag(
            name="model",
            values="PACKAGE.MODULE:FUNCTION",
            default="none",
            help="The builder of the run's model, whose module is imported: for a model with "
            "layers of your own, which the module registers. Other models need none.",
        ),
    ),
)

_RUN_DATA = _Group(
    "Data",
    (
        dataclasses.replace(_DATA.flags[0], default="the run's"),
        dataclasses.replace(_DATA.flags[1], default="the run's, then $TFDS_DATA_DIR, TFDS's own"),
    ),
)

_EVALUATION = _Group(
    "Evaluation",
    (
        _Flag(
            name="split",
            values=_one_of(config_lib.SPLITS),
            help="Which examples; the validation split is what the run held back, `all` is train, "
            "validation and test together.",
        ),
        _Flag(
            name="batch_size",
            values="auto|N",
            parse=_whole,
            unset="auto",
            help="Images in a step, over all replicas; it changes no result.",
        ),
        _Flag(
            name="out",
            values="PATH",
            default="<run_dir>/evaluation/<dataset>-<split>",
            help="Where evaluation.json, the confusion matrix and the reliability diagram go.",
        ),
        _Flag(
            name="json",
            values="true|false",
            parse=_truth,
            boolean=True,
            help="Print JSON for a script instead of lines for a person.",
        ),
    ),
)

_PREDICTION = _Group(
    "Prediction",
    (
        _Flag(
            name="format",
            values=_one_of(config_lib.PREDICTION_FORMATS),
            help="A table with the likeliest labels; JSON lines or CSV with every probability.",
        ),
        _Flag(
            name="top_k",
            values="N",
            parse=_whole,
            help="Labels of each image in the table.",
        ),
        _Flag(
            name="batch_size",
            values="N",
            parse=_whole,
            help="Images in a batch, over all replicas; results come a batch at a time.",
        ),
    ),
)

_EXPORT = _Group(
    "Export",
    (
        _Flag(
            name="formats",
            values="all|LIST",
            help=f"Which files to make: {', '.join(config_lib.EXPORT_FORMATS)}, joined by commas. "
            "All but keras and saved_model need pip install 'tfgpu[export]'.",
        ),
        _Flag(
            name="out",
            values="PATH",
            default="<run_dir>/export",
            help="Where the files and export.json go.",
        ),
        _Flag(
            name="max_difference",
            values="NUMBER",
            parse=_number,
            help="Between the probabilities of a float file and those of the Keras model; a file "
            "with a greater one is kept as NAME.rejected.",
        ),
        _Flag(
            name="max_accuracy_difference",
            values="FRACTION",
            parse=_number,
            help="The same for an int8 file, between accuracies: 0.01 is one point.",
        ),
        _Flag(
            name="calibration_examples",
            values="N",
            parse=_whole,
            help="Training images from which the ranges of int8 values are taken.",
        ),
    ),
)

_SEARCH = _Group(
    "Search",
    (
        _Flag(
            name="tuner",
            values=_one_of(config_lib.TUNERS),
            help="KerasTuner's: hyperband trains many for a few epochs and goes on with the better "
            "ones, the others train each trial for --epochs.",
        ),
        _Flag(
            name="space",
            values="default|FILE.py",
            help="A file that defines `space(hp) -> dict`: settings of a run, made from "
            "KerasTuner's hp.Choice, hp.Int, hp.Float and hp.Boolean (the file is run). `default` "
            "is one for lenet.",
        ),
        _Flag(
            name="objective",
            values=_one_of(config_lib.OBJECTIVES),
            help="What is compared, of the model that a trial ends with.",
        ),
        _Flag(
            name="max_trials",
            values="auto|N",
            parse=_whole,
            unset="auto",
            help="Trials at most; `auto` is 20 for random and bayesian, all there are for grid, "
            "and for hyperband once through its brackets, or as often as --max_minutes allows.",
        ),
        _Flag(
            name="max_minutes",
            values="off|MINUTES",
            parse=_number,
            unset="off",
            help="Time for the search, over all starts of it. Trials that are under way then are "
            "kept, and go on when there is more.",
        ),
        _Flag(
            name="workers",
            values="N",
            parse=_whole,
            help="Processes that train trials side by side on this machine, one GPU each, or one "
            "group of cores each where there is no GPU. One alone has all of them.",
        ),
        _Flag(
            name="final_seeds",
            values="N",
            parse=_whole,
            help="Trainings of the best settings at the end, with seeds that the search has not "
            "seen; they alone read the test split. 0 tests the best trial's own model.",
        ),
    ),
)

_PLAIN_GENERAL = _Group(
    "General",
    (
        *_some(_OUTPUT, "verbosity").flags,
        *(flag for flag in _GENERAL.flags if flag.name in ("help", "version")),
    ),
)


_PAGES = {
    "train": _Page(
        purpose="Train a model on every GPU of this machine, or on its CPU where there is none.",
        groups=(_DEVICES, _DATA, _MODEL, _TRAINING, _OUTPUT, _GENERAL),
        examples=(
            ("the main job: handwritten digits, no network", "--strategy=mirrored"),
            (
                "mixed precision, XLA and several steps per call, together",
                "--dataset=cifar10 --precision=mixed_float16 --jit_compile "
                "--steps_per_execution=50",
            ),
            (
                "your images and your model",
                "--dataset=folder:photos --image_size=64x64 --model=mymodels:build",
            ),
            (
                "an earlier run again, for longer",
                "--experiment=runs/NAME/config.json --epochs=60",
            ),
        ),
    ),
    "bench": _Page(
        purpose="Measure the machine, a plain baseline and one change of it at a time; say what "
        "bounds a step and\nwhich flag to change next. The other flags are the baseline's. "
        "Writes bench.json and charts.",
        settings=config_lib.BenchConfig,
        groups=(
            _COMPARISON,
            dataclasses.replace(
                _DEVICES, flags=tuple(flag for flag in _DEVICES.flags if flag.name != "strategy")
            ),
            _DATA,
            _MODEL,
            _some(_TRAINING, "batch_size", "optimizer", "gradient_accumulation_steps", "seed"),
            dataclasses.replace(
                _some(_OUTPUT, "progress"),
                flags=(
                    _Flag(
                        name="run_dir",
                        values="PATH",
                        default="runs/bench-<time>",
                        help="Where bench.json and the charts go.",
                    ),
                    *_some(_OUTPUT, "progress").flags,
                ),
            ),
            _GENERAL,
        ),
        examples=(
            ("the digits, every factor, in a few minutes", ""),
            (
                "whether reading keeps up",
                "--dataset=folder:photos --image_size=64x64 --factors=input,batch_size",
            ),
            (
                "your model on images of your size, without any data",
                "--model=mymodels:build --dataset=synthetic:224x224x3:1000",
            ),
        ),
    ),
    "tune": _Page(
        purpose="Search for better settings with KerasTuner. The flags of `tfgpu train` are what "
        "all trials share;\n--space says what is tried. The same command again goes on where it "
        "was stopped.",
        settings=config_lib.TuneConfig,
        groups=(
            _SEARCH,
            _DEVICES,
            _DATA,
            _MODEL,
            _TRAINING,
            dataclasses.replace(
                _OUTPUT,
                flags=(
                    _Flag(
                        name="run_dir",
                        values="PATH",
                        default="runs/tune-<dataset>-<model>-<time>",
                        help="Where the search keeps its trials, its state and its result.",
                    ),
                    *(flag for flag in _OUTPUT.flags if flag.name != "run_dir"),
                ),
            ),
            _GENERAL,
        ),
        examples=(
            ("the digits, in a few minutes", "--tuner=random --max_trials=10 --epochs=10"),
            (
                "half an hour for settings of your choice",
                "--dataset=cifar10 --space=experiments/search_recipe.py --max_minutes=30 "
                "--run_dir=runs/search",
            ),
            ("four GPUs, a trial on each", "--workers=4 --run_dir=runs/search"),
        ),
    ),
    "doctor": _Page(
        purpose="Say what keeps a training from starting, or from using the GPU, and what mends "
        "it. Exits 0 when\ntraining can start and 1 when not.",
        settings=config_lib.DoctorConfig,
        groups=(
            _DIAGNOSIS,
            _some(_DEVICES, "strategy", "devices"),
            _some(_DATA, "dataset", "data_dir"),
            _some(_OUTPUT, "run_dir", "progress"),
            _GENERAL,
        ),
        examples=(
            ("why is my GPU not used?", ""),
            ("in a script", "--json --devices=GPU:0"),
            ("which combinations train here, without XLA", "--probe=mirrored,no_xla"),
        ),
    ),
    "evaluate": _Page(
        purpose="Measure a finished run's model: loss, accuracy, calibration, confusion.",
        groups=(
            _RUN,
            _RUN_DATA,
            _EVALUATION,
            _some(_DEVICES, "strategy", "devices", "virtual_devices", "jit_compile"),
            _PLAIN_GENERAL,
        ),
        examples=(
            ("the test split of the run's own data", "--run_dir=runs/NAME"),
            (
                "every image of a folder of yours, for a script",
                "--run_dir=runs/NAME --dataset=folder:photos --split=all --json",
            ),
        ),
        settings=EvaluateConfig,
    ),
    "predict": _Page(
        purpose="Label images with a finished run's model: files, folders, or - for paths on "
        "standard input.",
        groups=(
            _RUN,
            _PREDICTION,
            _some(_DEVICES, "strategy", "devices", "virtual_devices"),
            _PLAIN_GENERAL,
        ),
        examples=(
            ("a folder and a file", "--run_dir=runs/NAME photos cat.jpg"),
            ("many, for a script", "--run_dir=runs/NAME --format=jsonl - < list.txt"),
        ),
        settings=PredictConfig,
        arguments="FILE_OR_FOLDER ...",
    ),
    "export": _Page(
        purpose="Write a finished run's model for other runtimes, and compare each file with it.",
        groups=(_RUN, _EXPORT, _RUN_DATA, _PLAIN_GENERAL),
        examples=(
            ("everything", "--run_dir=runs/NAME"),
            ("for TensorFlow Serving", "--run_dir=runs/NAME --formats=saved_model --out=serving"),
        ),
        settings=ExportConfig,
    ),
}


def parse(argv: Sequence[str], *, command: str = "train") -> Any:
    """Returns the settings that a command line asks for.

    Flags that are given win over `--experiment`, which wins over the defaults.

    Args:
        argv: The arguments, without the program's name.
        command: Whose flags.

    Returns:
        The settings of the command: a `Config` for `train`.

    Raises:
        RequestError: A flag is unknown, a value impossible, or the experiment file unusable.
        SystemExit: With 0, after `--help` or `--version` was answered on standard output.
    """
    # Before everything else: who asks for help may be stuck on a flag that does not parse.
    if not _HELP.isdisjoint(argv):
        print(help_text(command))
        raise SystemExit(0)
    if not _VERSION.isdisjoint(argv):
        print(version_text())
        raise SystemExit(0)

    settings_of = _PAGES[command].settings
    given = _given(argv, command)
    path = given.pop("experiment", None)
    if path is None:
        return settings_of.from_json(given)
    settings = experiment.read(Path(path))
    try:
        return settings_of.from_json(settings | given)
    except RequestError as error:
        raise RequestError(f"with --experiment={path}: {error}") from error


def to_argv(config: Config, *, command: str = "train") -> list[str]:
    """Returns the flags that `parse` turns into `config`: one for each non-default setting."""
    default = _PAGES[command].settings()
    return [
        f"--{flag.name}={as_typed(value)}"
        for flag in _PAGES[command].flags()
        if hasattr(config, flag.name)
        and (value := getattr(config, flag.name)) != getattr(default, flag.name)
    ]


def help_text(command: str = "train") -> str:
    """Returns the page that `--help` prints: every flag with its values and its default."""
    page = _PAGES[command]
    arguments = f" {page.arguments}" if page.arguments else ""
    lines = [
        f"usage: tfgpu {command} [--flag=value ...]{arguments}",
        f"       python -m tfgpu.{command} [--flag=value ...]{arguments}",
        "",
        page.purpose,
    ]
    for group in page.groups:
        lines += ["", f"{group.title}:"]
        for flag in group.flags:
            lines += _described(flag, page.settings)
    lines += ["", "Examples:"]
    for what, example in page.examples:
        lines += [f"  # {what}", f"  tfgpu {command} {example}".rstrip()]
    lines += ["", "Environment:", ENVIRONMENT, "", "Exit codes:", EXIT_CODES]
    return "\n".join(lines)


def version_text() -> str:
    """Returns a line each for tfgpu, TensorFlow and Keras, without importing the latter two."""
    # TensorFlow comes under several names; the first that is installed is the one imported.
    tensorflow = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tensorflow-macos")
    return "\n".join(
        [
            f"tfgpu {tfgpu.__version__}",
            f"tensorflow {_installed(*tensorflow)}",
            f"keras {_installed('keras', 'keras-nightly')}",
        ]
    )


def _installed(*names: str) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _described(flag: _Flag, settings: type[Settings]) -> list[str]:
    default = flag.default
    if default is None:
        # Of the class: some settings have no default as a whole.
        value = getattr(settings, flag.name)
        default = str(flag.unset) if value is None else as_typed(value)
    head = f"  --{flag.name}={flag.values}" if flag.values else f"  --{flag.name}"
    if default:
        head += f"  (default: {default})"
    indent = " " * 6
    return [
        head,
        *textwrap.wrap(flag.help, _WIDTH, initial_indent=indent, subsequent_indent=indent),
    ]


class _Parser(flags.ArgumentParser[Any]):
    """Gives absl a flag's own parse function, and the word that stands for None."""

    def __init__(self, flag: _Flag):
        self._flag = flag

    def parse(self, argument: str) -> Any:
        if self._flag.unset is not None and argument == self._flag.unset:
            return None
        try:
            return self._flag.parse(argument)
        except ValueError as error:
            unset = f", or {self._flag.unset}" if self._flag.unset else ""
            raise ValueError(f"{error}{unset}") from None


def _given(argv: Sequence[str], command: str) -> dict[str, Any]:
    """Returns the values of the flags that `argv` names, and of no others."""
    see = f"`tfgpu {command} --help` lists the flags"
    described = _PAGES[command].flags()
    values = flags.FlagValues()
    # A positional argument ends absl's parsing otherwise, and hides the flags after it.
    values.set_gnu_getopt(True)
    settable = [flag for flag in described if flag.values]  # --help and --version are answered
    for flag in settable:
        flags.DEFINE_flag(
            flags.Flag(_Parser(flag), None, flag.name, None, flag.help, boolean=flag.boolean),
            flag_values=values,
        )
    try:
        left = values(["tfgpu", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        near = did_you_mean(f"--{name}", [f"--{flag.name}" for flag in described])
        raise RequestError(f"--{name}: no such flag{near}; {see}") from error
    except flags.IllegalFlagValueError as error:
        raise RequestError(str(error).removeprefix("flag ")) from error
    except (flags.Error, ValueError) as error:
        raise RequestError(f"{error}; {see}") from error
    given = {flag.name: values[flag.name].value for flag in settable if values[flag.name].present}
    if _PAGES[command].arguments:
        given["paths"] = tuple(left)
    elif left:
        raise RequestError(
            f"{left[0]!r} is not a flag; every setting is written --name=value, and {see}"
        )
    return given
