"""Run directories as `tfgpu train` leaves them, written by hand, and what is asked of a page."""

import html.parser
import json
import re

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

from tfgpu.train.settings import TrainSettings

EVIL = "<img src=x onerror=alert(1)>\"'&<script>alert(2)</script>"

# One grey pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def config(**changed):
    """Decided settings, as `config.json` holds them."""
    decided = {"dataset": "digits", "model": "lenet", "batch_size": 32, "epochs": 3}
    decided |= {"optimizer": "sgd", "learning_rate": 0.02, "jit_compile": False}
    return TrainSettings().to_json() | decided | changed


def metrics(epochs=3, *, metric="accuracy", best=0.9):
    """The lines of `metrics.jsonl`."""
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 1.0 / epoch,
            metric: best * epoch / epochs,
            "val_loss": 1.5 / epoch,
            f"val_{metric}": best * epoch / epochs - 0.01,
            "samples_per_second": 1000.0,
            "seconds": 2.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def result(*, status="finished", metric="accuracy", best=0.9, **changed):
    """`result.json`."""
    return {
        "status": status,
        "parameters": 62006,
        "epochs": 3,
        "steps": 30,
        "loss": 0.3,
        metric: best,
        "val_loss": 0.5,
        f"val_{metric}": best - 0.01,
        "test_loss": 0.6,
        f"test_{metric}": best - 0.02,
        "samples_per_second": 1234.0,
        "train_seconds": 3.0,
        "total_seconds": 10.0,
        "time_spent": {"start-up": 6.0, "training": 3.0, "test": 1.0},
        "hardware": {
            "interval_seconds": 2.0,
            "samples": 5,
            "energy_joules": 1234.0,
            "figures": [{"figure": "cpu", "unit": "%", "mean": 50.0, "most": 99.0}],
            "energy": [{"of": "GPU 0, H200", "joules": 1234.0, "by": "its counter of energy"}],
            "missing": [{"what": "energy of the processor", "why": "not readable"}],
        },
    } | changed


def environment(name="a class", **dataset):
    """`environment.json`, with ten classes of that name."""
    about = {
        "name": "digits",
        "version": "1.0.0",
        "fingerprint": "f" * 64,
        "task": "classification",
    }
    about |= {"license": "CC BY 4.0", "citation": "@misc{x}", "homepage": "https://example.org/"}
    about |= {"class_names": [f"{name}{i}" for i in range(10)], "image_shape": [32, 32, 3]}
    about |= {"objective": "accuracy", "maximize": True, "train_examples": 1293}
    return {
        "time": "2026-11-27T08:00:00+00:00",
        "versions": {"python": "3.11.7", "tensorflow": "2.21.0"},
        "platform": "Linux",
        "cpu": {"model": "AMD EPYC", "cores": 2},
        "devices": [{"name": "CPU:0", "description": "AMD EPYC", "memory_bytes": None}],
        "replicas": 1,
        "variables": {"TF_ENABLE_ONEDNN_OPTS": "1"},
        "given": {"epochs": 3},
        "dataset": about | dataset,
    }


def write(path, **files):
    """Writes the files of a run: `config`, `environment`, `result`, `metrics`; None leaves one out.

    Returns:
        The directory.
    """
    path.mkdir(parents=True, exist_ok=True)
    wanted = {"config": config(), "environment": environment(), "result": result()}
    for name, value in (wanted | {"metrics": metrics()} | files).items():
        if value is None:
            continue
        if name == "metrics":
            lines = "".join(json.dumps(line) + "\n" for line in value)
            (path / "metrics.jsonl").write_text(lines)
        elif isinstance(value, str):
            (path / f"{name}.json").write_text(value)
        else:
            (path / f"{name}.json").write_text(json.dumps(value))
    return path


def write_events(folder, *, scalars=(), pictures=(), texts=()):
    """Writes an event file of (tag, step, value), and of (tag, PNG or text, description)."""
    writer = EventFileWriter(str(folder))
    for tag, step, value in scalars:
        described = scalar_metadata.create_summary_metadata("", "In %: of it.")
        _add(writer, step, tag, tensor_util.make_tensor_proto(value, dtype="float32"), described)
    for tag, content, description in pictures:
        described = image_metadata.create_summary_metadata("", description)
        tensor = tensor_util.make_tensor_proto([b"1", b"1", content])
        _add(writer, 0, tag, tensor, described)
    for tag, content, description in texts:
        described = text_metadata.create_summary_metadata("", description)
        _add(writer, 0, tag, tensor_util.make_tensor_proto(content.encode()), described)
    writer.close()


def _add(writer, step, tag, tensor, metadata):
    value = summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
    summary = summary_pb2.Summary(value=[value])
    writer.add_event(event_pb2.Event(wall_time=1.0, step=step, summary=summary))


class Page(html.parser.HTMLParser):
    """A page that is read strictly, and what it consists of.

    Attributes:
        elements: (name, attributes) in order.
        text: All that is shown, with spaces made one.
    """

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements, self._open, self._text = [], [], []
        self.feed(source)
        self.close()
        assert self._open == [], self._open
        self.text = re.sub(r"\s+", " ", " ".join(self._text))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), attributes
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, (tag, self._open, self.getpos())
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self._text.append(data)

    def all(self, name):
        """The attributes of the elements of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]


def check(source):
    """Reads a page, and sees that it is whole, safe, and can be read by ear; returns it."""
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>\n<html lang=")
    # Nothing that runs, and nothing from elsewhere.
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action", "data", "srcset"):
            if (target := attributes.get(name)) is not None:
                assert target.startswith(("#", "data:image/png;base64,")), (tag, target)
    assert "url(" not in source and "@import" not in source
    # Names that are referred to are there, and once.
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), sorted(ids)
    for _, attributes in page.elements:
        for name in attributes.get("aria-labelledby", "").split():
            assert name in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    # Landmarks, headings in order, names for pictures, heads for tables.
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(image.get("alt", "").strip() for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for drawn in page.all("svg"):
        assert drawn.get("aria-hidden") == "true" or drawn["role"] == "img"
    return page
