"""Flags to settings and back, and the help pages: the only module that touches absl's flags.

The flags of a command are the fields of its settings, `tfgpu.<command>.settings`. They are defined
on a `FlagValues` of our own for each parse, which leaves absl's global `FLAGS` as it was, and
absl's own flags out of `--help`. Neither TensorFlow nor NumPy is imported: that answers at once.
"""

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

import tfgpu
from tfgpu.cli import experiment
from tfgpu.cli.settings import Setting, Settings, as_typed
from tfgpu.cli.shared_settings import GENERAL
from tfgpu.errors import RequestError, did_you_mean

_WIDTH = 90

_HELP = {"--help", "-help", "-h", "--help=true"}
_VERSION = {"--version", "-version", "--version=true"}

ENVIRONMENT = """\
  TFDS_DATA_DIR  where TFDS keeps its data sets
  TF_CONFIG      the machines of --strategy=multi_worker_mirrored; `tfgpu launch` sets it
  TFGPU_CLUSTER_TOKEN, TFGPU_CLUSTER_TOKEN_FILE
                 the secret that they share, or a file with it that only its owner may read
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
  6    another worker of a training on several machines was lost, or never came
  130  stopped by Ctrl-C;  143  stopped by SIGTERM"""

# Flags that are no settings: --experiment is how settings are obtained, the others are answered.
_EXPERIMENT = (
    "Settings from a file: FILE.py that defines `config() -> dict` (the file is run), or an "
    "earlier run's config.json (nothing is run). Flags given beside it win."
)
_ANSWERED = {
    "help": "Print this page.",
    "version": "Print the versions of tfgpu, TensorFlow and Keras.",
}


def settings_of(command: str) -> type[Settings]:
    """Returns the class of a command's settings."""
    module = importlib.import_module(f"tfgpu.{command}.settings")
    found: type[Settings] = getattr(module, f"{command.capitalize()}Settings")
    return found


def parse(argv: Sequence[str], *, command: str = "train") -> Any:
    """Returns the settings that a command line asks for: `TrainSettings` for `train`.

    Flags that are given win over `--experiment`, which wins over the defaults.

    Args:
        argv: The arguments, without the program's name.
        command: Whose flags.

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

    taken = settings_of(command)
    values = given(argv, command)
    path = values.pop("experiment", None)
    if path is None:
        return taken.from_json(values)
    settings = experiment.read(Path(path))
    try:
        return taken.from_json(settings | values)
    except RequestError as error:
        raise RequestError(f"with --experiment={path}: {error}") from error


def to_argv(settings: Settings, *, command: str = "train") -> list[str]:
    """Returns the flags that `parse` turns into `settings`: one for each non-default setting."""
    taken = settings_of(command)
    return [
        f"--{name}={as_typed(getattr(settings, name))}"
        for section in taken.page().values()
        for name in section
        # Of the class: some settings have no default as a whole.
        if getattr(settings, name) != getattr(taken, name)
    ]


def described(command: str) -> dict[str, list[tuple[str, str, str]]]:
    """Returns head, default and help of each flag, in the sections of the help page."""
    taken = settings_of(command)
    page: dict[str, list[tuple[str, str, str]]] = {}
    for title, section in taken.page().items():
        page[title] = []
        for name, setting in section.items():
            # Of the class: some settings have no default as a whole.
            value = getattr(taken, name)
            default = "none: it has to be given" if setting.required else setting.default
            if default is None:
                default = str(setting.word) if value is None else as_typed(value)
            values = f"{setting.word}|{setting.values}" if setting.word else setting.values
            page[title].append((f"--{name}={values}", default, taken.help(name)))
    if taken.experiment:
        page[GENERAL].append(("--experiment=FILE", "none", _EXPERIMENT))
    page[GENERAL] += [(f"--{name}", "", text) for name, text in _ANSWERED.items()]
    return {title: flags for title, flags in page.items() if flags}


def help_text(command: str = "train") -> str:
    """Returns the page that `--help` prints: every flag with its values and its default."""
    taken = settings_of(command)
    usage = f"{command} [--flag=value ...] {taken.arguments}".rstrip()
    purpose, _, rest = inspect.cleandoc(taken.__doc__ or "").partition("\n\n")
    lines = [f"usage: tfgpu {usage}", f"       python -m tfgpu.{usage}", ""]
    lines += textwrap.wrap(purpose, _WIDTH)
    indent = " " * 6
    for title, flags_of in described(command).items():
        lines += ["", f"{title}:"]
        for head, default, text in flags_of:
            lines.append(f"  {head}  (default: {default})" if default else f"  {head}")
            lines += textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    examples = rest.partition("Examples:\n")[2].partition("\n\n")[0]
    lines += ["", "Examples:", *textwrap.indent(textwrap.dedent(examples), "  ").splitlines()]
    lines += ["", "Environment:", ENVIRONMENT, "", "Exit codes:", EXIT_CODES]
    return "\n".join(lines)


def version_text() -> str:
    """Returns a line each for tfgpu, TensorFlow and Keras, without importing the latter two."""
    # They come under several names; the first that is installed is the one imported.
    tensorflow = _installed("tensorflow", "tensorflow-cpu", "tf-nightly", "tensorflow-macos")
    keras = _installed("keras", "keras-nightly")
    return f"tfgpu {tfgpu.__version__}\ntensorflow {tensorflow}\nkeras {keras}"


def _installed(*names: str) -> str:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "not installed"


class _Parser(flags.ArgumentParser[Any]):
    """Has absl read a flag as its setting does."""

    def __init__(self, setting: Setting):
        self._setting = setting

    def parse(self, argument: str) -> Any:
        return self._setting.read(argument)


def given(argv: Sequence[str], command: str) -> dict[str, Any]:
    """Returns the values of the flags that a command line names, and of no others.

    Args:
        argv: The arguments, without the program's name.
        command: Whose flags.

    Raises:
        RequestError: A flag is unknown, or its value cannot be read.
    """
    see = f"`tfgpu {command} --help` lists the flags"
    taken = settings_of(command)
    settable = {name: each for page in taken.page().values() for name, each in page.items()}
    if taken.experiment:
        settable["experiment"] = Setting()
    values = flags.FlagValues()
    # A positional argument ends absl's parsing otherwise, and hides the flags after it.
    values.set_gnu_getopt(True)
    for name, setting in settable.items():
        flag: type[flags.Flag[Any]] = flags.MultiFlag if setting.repeated else flags.Flag
        defined = flag(_Parser(setting), None, name, None, "", boolean=setting.boolean)
        flags.DEFINE_flag(defined, flag_values=values)
    try:
        left = values(["tfgpu", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        near = did_you_mean(f"--{name}", [f"--{flag}" for flag in (*settable, *_ANSWERED)])
        raise RequestError(f"--{name}: no such flag{near}; {see}") from error
    except flags.IllegalFlagValueError as error:
        raise RequestError(str(error).removeprefix("flag ")) from error
    except (flags.Error, ValueError) as error:
        raise RequestError(f"{error}; {see}") from error
    found: dict[str, Any] = {}
    for name, setting in settable.items():
        if values[name].present:
            value: Any = values[name].value
            found[name] = tuple(value) if setting.repeated else value
    if taken.arguments:
        found["paths"] = tuple(left)
    elif left:
        raise RequestError(
            f"{left[0]!r} is not a flag; every setting is written --name=value, and {see}"
        )
    return found
