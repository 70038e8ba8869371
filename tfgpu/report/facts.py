"""What a report says of one run, section by section, from its files alone."""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfgpu.artifacts import event_files
from tfgpu.artifacts.event_files import Events, Shown
from tfgpu.artifacts.run_files import FAILED, RunFiles
from tfgpu.cli import flags
from tfgpu.cli.console import duration
from tfgpu.errors import RequestError
from tfgpu.report import tables
from tfgpu.report.charts import Chart, Series, figure, line_chart
from tfgpu.report.tables import Table
from tfgpu.train.settings import TrainSettings

_SPLITS = {"": "training", "val_": "validation", "test_": "test"}
_MOST_PICTURE = 8 << 20
"""Bytes of a picture, at most, that is put into the file."""
_END_OF_LOG = 25
_LEARNING_RATE = "epoch_learning_rate"
_SCALARS = ("performance/samples_per_second", "training/gradient_norm", "hardware/")
"""Tags of TensorBoard, or what they begin with, that get a chart."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture or a text that the task's own report drew.

    Attributes:
        title: From its tag, or from its file.
        description: For who cannot see it, and below it.
        data: A `data:` URL of a PNG file; "" for a text.
        table: Of a text that is one; else None.
        text: Any other text.
    """

    title: str
    description: str
    data: str = ""
    table: Table | None = None
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a run.

    Attributes:
        name: Of the flag.
        value: Its value, decided.
        default: What it is without the flag.
        how: "given", "decided" or "default".
    """

    name: str
    value: str
    default: str
    how: str


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a whole: what a second of the run went into.

    Attributes:
        name: Of the part.
        amount: For people.
        share: From 0 to 1.
    """

    name: str
    amount: str
    share: float


def settings(run: RunFiles) -> list[Setting]:
    """The settings of a run: those that were given first, then those that were decided."""
    defaults = TrainSettings().to_json()
    given = run.environment.get("given")
    found = []
    for name, value in run.config.items():
        default = defaults.get(name)
        open_ = name in defaults and default in (None, "auto")
        if isinstance(given, Mapping) and name in given:
            how = "given"
        elif value == default:
            how = "default"
        # Of an older run nobody knows whether what was open was given or decided.
        elif open_ and name != "run_dir":
            how = "decided"
        else:
            how = "given"
        shown = "auto" if default is None and how == "decided" else tables.as_set(default)
        found.append(Setting(name, tables.as_set(value), shown, how))
    order = ("given", "decided", "default")
    return sorted(found, key=lambda each: order.index(each.how))


def outcome(run: RunFiles) -> Table | None:
    """Losses and metrics by split."""
    rows = []
    for name in run.metric_names:
        values = [run.value(split + name) for split in _SPLITS]
        if any(value is not None for value in values):
            rows.append([name, *map(figure, values)])
    if not rows:
        return None
    return Table("Losses and metrics at the end", ["metric", *_SPLITS.values()], rows)


def figures(run: RunFiles) -> Table | None:
    """The other figures of the result."""
    done, wanted = run.epochs
    of_result = run.result
    speed, seconds, training = (
        run.value(name) for name in ("samples_per_second", "total_seconds", "train_seconds")
    )
    used = of_result.get("hardware")
    energy = used.get("energy_joules") if isinstance(used, Mapping) else None
    return tables.of_facts(
        "Key figures",
        {
            "task": run.dataset.get("task"),
            "model": run.config.get("model"),
            "parameters": of_result.get("parameters"),
            "epochs": f"{done} of {wanted}" if wanted else done,
            "steps": of_result.get("steps"),
            "examples a second in training steps": speed,
            "energy": None if energy is None else f"{figure(energy)} J",
            "seconds of training": None if training is None else duration(training),
            "seconds in all, of the last process": None if seconds is None else duration(seconds),
            "identical inputs in training and": of_result.get("identical_inputs"),
        },
        head="figure",
    )


def curves(run: RunFiles) -> list[Chart]:
    """Charts of the metrics by epoch, of training and validation together, and the rate."""
    charts = []
    for name in run.metric_names:
        series = [
            Series(_SPLITS[split], [(m["epoch"], m.get(split + name)) for m in _epochs(run)])
            for split in ("", "val_")
        ]
        charts.append(line_chart(name, series))
    return [chart for chart in charts if chart is not None]


def scalar_charts(events: Mapping[str, Events]) -> list[Chart]:
    """Charts of TensorBoard's scalars that have no file of their own: rate, speed, hardware."""
    scalars = events["train"].scalars
    charts = [
        line_chart("learning rate", [Series("rate", [(x + 1, y) for x, y in points])])
        for points in [scalars.get(_LEARNING_RATE, [])]
    ]
    for tag, points in scalars.items():
        if tag.startswith(_SCALARS):
            said = events["train"].descriptions.get(tag, "").rstrip(".")
            name = tag.partition("/")[2].replace("_", " ")
            title = f"{name} ({said[0].lower()}{said[1:]})" if said else name
            charts.append(line_chart(title, [Series(name, points)], x_label="step"))
    return [chart for chart in charts if chart is not None]


def epochs(run: RunFiles) -> Table | None:
    """Every epoch."""
    lines = list(_epochs(run))
    if not lines:
        return None
    head = list(dict.fromkeys(name for line in lines for name in line))
    every = -(-len(lines) // tables.MOST_ROWS)
    shown = [line for i, line in enumerate(lines) if i % every == 0 or i == len(lines) - 1]
    note = f"Every {every}th of {len(lines):,} epochs, and the last." if every > 1 else ""
    rows = [[tables.text(line.get(name)) for name in head] for line in shown]
    return Table("Every epoch", head, rows, note, folded=True)


def _epochs(run: RunFiles) -> Iterator[Mapping[str, Any]]:
    for line in run.metrics:
        if isinstance(line.get("epoch"), int):
            yield {name: v if isinstance(v, int | float) else None for name, v in line.items()}


def data(run: RunFiles) -> Table | None:
    """Where the data come from and how many there are."""
    about = run.dataset
    names = about.get("class_names")
    facts: dict[str, Any] = {"data set": run.config.get("dataset")}
    for name in ("version", "license", "homepage", "fingerprint", "task"):
        facts[name] = about.get(name)
    facts["license"] = facts["license"] or "not stated by the source"
    facts["shape of x"] = _shape(about.get("x") or {"shape": about.get("image_shape")})
    facts["shape of y"] = _shape(about.get("y"))
    for split in ("train", "validation", "test"):
        facts[f"{split} examples"] = about.get(f"{split}_examples")
    facts["test split"] = about.get("test_split")
    if isinstance(names, list) and names:
        facts["classes"] = f"{len(names):,}: {', '.join(map(str, names[:100]))}"
        facts["classes"] += " …" if len(names) > 100 else ""
    return tables.of_facts("The data set", facts)


def _shape(spec: Any) -> str | None:
    if not isinstance(spec, Mapping):
        return None
    if "shape" in spec and not isinstance(spec["shape"], Mapping):
        if spec["shape"] is None:
            return None
        return " ".join(filter(None, [json.dumps(spec["shape"]), str(spec.get("dtype") or "")]))
    return ", ".join(f"{name}: {_shape(part)}" for name, part in spec.items())


def citation(run: RunFiles) -> str:
    """How the data want to be cited."""
    found = run.dataset.get("citation")
    return found if isinstance(found, str) else ""


def events_of(run: RunFiles) -> dict[str, Events]:
    """What the event files of a run hold, by folder."""
    folder = run.path / "tensorboard"
    return {name: event_files.read(folder / name) for name in ("train", "validation")}


def samples(events: Mapping[str, Events]) -> list[Picture]:
    """Training examples as the model sees them, drawn by the task's report."""
    return [_picture(tag, shown) for tag, shown in events["train"].shown.items() if _known(shown)]


def pictures(run: RunFiles, events: Mapping[str, Events]) -> list[Picture]:
    """What the task's report drew of predictions: at the end of training, and in evaluations."""
    shown = events["validation"].shown.items()
    found = [_picture(tag, each) for tag, each in shown if _known(each)]
    for folder in _evaluations(run):
        for path in sorted(folder.glob("*.png")):
            content = path.read_bytes()
            if content.startswith(event_files.PNG) and len(content) <= _MOST_PICTURE:
                title = f"{path.stem.replace('_', ' ')} of {folder.name}"
                said = f"{title}, drawn by tfgpu evaluate; its figures are in the tables."
                found.append(Picture(title, said, _url(content)))
    return found


def evaluations(run: RunFiles) -> list[Table]:
    """The figures and tables of each `tfgpu evaluate` of the run, whatever its task."""
    found: list[Table] = []
    for folder in _evaluations(run):
        try:
            value = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            value.pop("run_dir", None)
            found += tables.of_json(folder.name, value)
    return found


def _evaluations(run: RunFiles) -> list[Path]:
    return sorted(path.parent for path in run.path.glob("evaluation/*/evaluation.json"))


def _known(shown: Shown) -> bool:
    return len(shown.content) <= _MOST_PICTURE


def _picture(tag: str, shown: Shown) -> Picture:
    title = tag.replace("_", " ")
    description = shown.description or title
    if isinstance(shown.content, bytes):
        return Picture(title, description, _url(shown.content))
    table = tables.of_markdown(description, shown.content)
    return Picture(title, description, table=table, text="" if table else shown.content)


def _url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def time_spent(run: RunFiles) -> list[Part]:
    """What the seconds of the last process went into, the most first."""
    where = run.result.get("time_spent")
    if not isinstance(where, Mapping):
        return []
    known = {str(k): float(v) for k, v in where.items() if isinstance(v, int | float) and v > 0}
    total = sum(known.values())
    return [
        Part(name, duration(seconds), seconds / total)
        for name, seconds in sorted(known.items(), key=lambda item: -item[1])
    ]


def hardware(run: RunFiles) -> list[Table]:
    """How the hardware was used."""
    found = run.result.get("hardware")
    if not isinstance(found, Mapping):
        return []
    captions = {
        "Sampled by the last process": found.get("figures"),
        "Energy": found.get("energy"),
        "Not known": found.get("missing"),
    }
    return [
        dataclasses.replace(table, caption=caption)
        for caption, records in captions.items()
        for table in tables.of_json("", {caption: records})
    ]


def environment(run: RunFiles) -> list[Table]:
    """What the run stood on."""
    about = run.environment
    if not about:
        return []
    cpu, git = about.get("cpu"), about.get("git")
    facts = {
        "begun": about.get("time"),
        "platform": about.get("platform"),
        "processor": tables.text(cpu) if cpu else None,
        "NVIDIA driver": about.get("nvidia_driver"),
        "strategy": about.get("strategy"),
        "replicas": about.get("replicas"),
        "workers": about.get("workers"),
        "git": tables.text(git) if git else None,
    }
    versions = about.get("versions")
    variables = about.get("variables")
    devices = about.get("devices")
    found = [tables.of_facts("The machine", facts)]
    if isinstance(versions, Mapping):
        found.append(tables.of_facts("Versions", versions, head="library"))
    if isinstance(devices, list):
        found += tables.of_json("environment", {"devices": devices})
    if isinstance(variables, Mapping):
        found.append(tables.of_facts("Environment variables", variables, head="variable"))
    return [table for table in found if table is not None]


def commands(run: RunFiles) -> dict[str, str]:
    """Commands to copy, by what they do."""
    found = {"Continue this run": run.continue_command, "Repeat it": run.repeat_command}
    try:
        known = TrainSettings.from_json({**run.config, "run_dir": None, "resume": "auto"})
    except (RequestError, TypeError):  # Of another version.
        known = None
    if known is not None:
        argv = ["tfgpu", "train", *flags.to_argv(known)]
        found["The same with every setting as a flag"] = shlex.join(argv)
    if (run.path / "model.keras").is_file():
        evaluate = ["tfgpu", "evaluate", f"--run_dir={run.path}"]
        if ":" in str(run.dataset.get("task")):
            evaluate.append(f"--task={run.dataset['task']}")
        found["Measure its model"] = shlex.join(evaluate)
    return {what: command for what, command in found.items() if command}


def end_of_log(run: RunFiles) -> str:
    """The last lines of the log, of a run that failed."""
    return "\n".join(run.log[-_END_OF_LOG:]) if run.status == FAILED else ""
