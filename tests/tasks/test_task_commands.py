"""Search, bench and TensorBoard work with every task; each on a small generated set."""

import json
import subprocess
import sys

import labelled
import pytest
import rated
import segmented
import sounded
import tabled
import worded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

# Task: what writes its data, and flags with the place; the objective of a search; what TensorBoard
# shows of the finished model.
TASKS = {
    "text": ("csv:{}/texts.csv", (), "val_accuracy", "mistakes"),
    "segmentation": ("folder:{}/cells", ("--width=0.25", "--depth=1"), "val_mean_iou", None),
    "recommendation": ("csv:{}/ratings.csv", (), "val_rmse", None),
    "tabular": ("csv:{}/homes.csv", ("--target=price",), "val_rmse", "mistakes"),
    "multilabel": ("csv:{}/labels.csv", (), "val_map", None),
    "audio": ("folder:{}/sounds", ("--width=0.25",), "val_accuracy", None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    worded.write(place / "texts.csv", worded.texts(120))
    segmented.write(place / "cells", 24)
    rated.write(place / "ratings.csv", rated.interactions(400))
    tabled.write(place / "homes.csv", tabled.homes(160))
    # 32x32 by --image_size: the smallest that the default model takes.
    labelled.write(place / "labels.csv", labelled.images(place, 48))
    sounded.write(place / "sounds", 12)
    return place


def tfgpu(command, *flags):
    argv = [sys.executable, "-m", f"tfgpu.{command}", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_a_search_compares_by_the_metric_of_the_task(place, tmp_path, task):
    data, flags, objective, _ = TASKS[task]
    # Of the smallest models, since a trial of each task is enough.
    space = tmp_path / "space.py"
    space.write_text('def space(hp):\n    return {"width": hp.Choice("width", [0.25, 0.5])}\n')
    search = (
        f"--space={space}",
        "--batch_size=8",
        "--tuner=random",
        "--max_trials=2",
        "--final_seeds=1",
        "--epochs=1",
    )
    tfgpu(
        "tune",
        f"--dataset={data.format(place)}",
        f"--run_dir={tmp_path / 'search'}",
        "--devices=CPU:0",
        *search,
        *flags,
    )
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    assert result["objective"] == objective


@pytest.mark.parametrize("task", TASKS)
def test_bench_times_the_task(place, tmp_path, task):
    data, flags, _, _ = TASKS[task]
    tfgpu(
        "bench",
        f"--dataset={data.format(place)}",
        f"--run_dir={tmp_path}",
        "--factors=precision",
        "--rounds=1",
        "--batch_size=8",
        "--devices=CPU:0",
        *flags,
    )
    cells = json.loads((tmp_path / "bench.json").read_text())["cells"]
    assert [cell["error"] for cell in cells] == [None] * 3


@pytest.mark.parametrize("task", TASKS)
def test_tensorboard_has_the_curves_of_the_task(place, tmp_path, task):
    data, flags, objective, shown = TASKS[task]
    tfgpu(
        "train",
        f"--dataset={data.format(place)}",
        f"--run_dir={tmp_path}",
        "--devices=CPU:0",
        "--epochs=2",
        *flags,
    )
    tags = {"scalars": set(), "tensors": set()}
    for folder in {path.parent for path in (tmp_path / "tensorboard").rglob("*tfevents*")}:
        found = EventAccumulator(str(folder))
        found.Reload()
        for kind, names in tags.items():
            names.update(found.Tags()[kind])
    assert any(objective.removeprefix("val_") in tag for tag in tags["tensors"] | tags["scalars"])
    if shown is not None:
        assert any(shown in tag for tag in tags["tensors"])
