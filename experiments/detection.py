"""The task `detection` on generated shapes and on trees from the air, beside plain Keras.

    python experiments/detection.py FOLDER [--parts=shapes,trees,speed] [--held_out=IMAGE]

Shapes: circles, squares and triangles in random colours on noise, 96x96 pixels, 1 to 4 on an image;
400 to train on, 100 to test. Trees: FOLDER holds the images that come with deepforest 2.1.0 (MIT)
and `boxes.json`, their hand-drawn boxes as COCO: four images, of which one is held out and the
other three are trained on, all cut to tiles of 400x400 pixels. The AP is that of pycocotools, over
the tiles. Writes `experiments/results/detection.json` after each run, and draws the detections of
the first of `--seeds` on the held-out tiles; takes about a quarter of an hour on two quiet cores,
and 3 minutes for each seed of each further image of trees.

What it cannot show: how good the detector is on photographs. Three images of trees are no training
set, two of the four show the same valley, and a figure of one image is no more than a sign that it
learns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from PIL import Image, ImageDraw
from versus import children_seconds, machine, write, written

SEEDS = (0, 1, 2)
SHAPES = ("circle", "square", "triangle")
SIDE = 96
TILE = 400
VISIBLE = 0.3
"""The share of a tree that a tile must have for it to have a box."""

TREES = ["--image_size=192x192"]
HELD_OUT = "SOAP_061.png"
KEPT = ("map", "map_50", "voc_map", "recall", "loss")


def coco(folder: Path, split: str, names: Sequence[str], pictures: Sequence[Any]) -> None:
    """Writes pictures, each an image and boxes (left, top, width, height, class), as COCO."""
    images, annotations = [], []
    (folder / split).mkdir(parents=True, exist_ok=True)
    for i, (image, boxes) in enumerate(pictures, 1):
        name = f"{i:04d}.png"
        Image.fromarray(image).save(folder / split / name)
        height, width = image.shape[:2]
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        for *box, label in boxes:
            one = {"id": len(annotations) + 1, "image_id": i, "category_id": int(label) + 1}
            annotations.append({**one, "bbox": [float(side) for side in box], "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def shapes(random: np.random.RandomState) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """An image of shapes, of which none covers another by a fifth or more, and their boxes."""
    noise = random.randint(60, 110, (SIDE, SIDE, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    pen = ImageDraw.Draw(image)
    boxes: list[tuple[int, ...]] = []
    for _ in range(random.randint(1, 5)):
        wide, high = random.randint(14, 45, 2).tolist()
        left, top = random.randint(0, SIDE - wide + 1), random.randint(0, SIDE - high + 1)
        if any(
            max(0, min(left + wide, a + c) - max(left, a))
            * max(0, min(top + high, b + d) - max(top, b))
            >= 0.2 * min(wide * high, c * d)
            for a, b, c, d, _ in boxes
        ):
            continue
        label = random.randint(len(SHAPES))
        colour = tuple(random.randint(130, 256, 3).tolist())
        right, bottom = left + wide - 1, top + high - 1
        if label == 0:
            pen.ellipse((left, top, right, bottom), fill=colour)
        elif label == 1:
            pen.rectangle((left, top, right, bottom), fill=colour)
        else:
            pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=colour)
        boxes.append((left, top, wide, high, label))
    return np.asarray(image), boxes


def tiles(image: np.ndarray, boxes: np.ndarray) -> list[tuple[np.ndarray, list[Any]]]:
    """Parts of `TILE` x `TILE` pixels that cover an image, with what they have of its boxes."""
    found = []
    starts = []
    for side in image.shape[:2]:
        count = max(1, -(-side // TILE))
        starts.append([round(i * (side - TILE) / max(count - 1, 1)) for i in range(count)])
    for top in starts[0]:
        for left in starts[1]:
            own = []
            for x, y, wide, high in boxes:
                low = max(x - left, 0), max(y - top, 0)
                end = min(x + wide - left, TILE), min(y + high - top, TILE)
                sides = end[0] - low[0], end[1] - low[1]
                if min(sides) > 0 and sides[0] * sides[1] >= VISIBLE * wide * high:
                    own.append((*low, *sides, 0))
            found.append((image[top : top + TILE, left : left + TILE], own))
    return found


def measured(folder: Path, flags: Sequence[str], seed: int, drawn: Path | None) -> dict[str, Any]:
    """Trains on `folder`, and evaluates on its test; draws the detections where that is asked."""
    with tempfile.TemporaryDirectory() as place:
        run = f"--run_dir={place}/run"
        data = [f"--dataset=coco:{folder}", "--validation_fraction=0", f"--seed={seed}"]
        before, start = children_seconds(), time.perf_counter()
        _tfgpu("train", run, *data, "--tensorboard=none", *flags)
        seconds, cpu_seconds = time.perf_counter() - start, children_seconds() - before
        _tfgpu("evaluate", run, f"--out={place}/evaluation")
        result = json.loads(Path(place, "run", "result.json").read_text())
        evaluation = json.loads(Path(place, "evaluation", "evaluation.json").read_text())
        if drawn is not None:
            _tfgpu("predict", run, f"--out={drawn}", str(folder / "test"))
    return {
        "seed": seed,
        **{name: evaluation[name] for name in KEPT},
        "epochs": result["epochs"],
        "process_seconds": seconds,
        "user_cpu_seconds": cpu_seconds,
    }


def _tfgpu(command: str, *flags: str) -> None:
    subprocess.run(
        [sys.executable, "-m", f"tfgpu.{command}", *flags], check=True, stdout=subprocess.DEVNULL
    )


def with_runs(known: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs that are known, those of the same seed replaced by `runs`, and their medians."""
    by_seed = {run["seed"]: run for run in [*known.get("runs", []), *runs]}
    every = [by_seed[seed] for seed in sorted(by_seed)]
    names = (*KEPT, "process_seconds", "user_cpu_seconds")
    median = {name: statistics.median(run[name] for run in every) for name in names}
    return {**known, "median": median, "runs": every}


def measure_shapes(seed: int) -> dict[str, Any]:
    """One training; the seed is that of the data too."""
    with tempfile.TemporaryDirectory() as place:
        random = np.random.RandomState(seed)
        for split, count in (("train", 400), ("test", 100)):
            coco(Path(place), split, SHAPES, [shapes(random) for _ in range(count)])
        return measured(Path(place), [], seed, None)


def measure_trees(folder: Path, name: str, seed: int, drawn: Path | None) -> dict[str, Any]:
    """One training, without the image of that name."""
    content = json.loads((folder / "boxes.json").read_text())
    parts: dict[str, list[Any]] = {"train": [], "test": []}
    for image in content["images"]:
        own = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        pixels = np.asarray(Image.open(folder / image["file_name"]).convert("RGB"))
        parts["test" if image["file_name"] == name else "train"] += tiles(pixels, np.array(own))
    with tempfile.TemporaryDirectory() as place:
        for split, pictures in parts.items():
            coco(Path(place), split, ("tree",), pictures)
        found = measured(Path(place), TREES, seed, drawn)
    return {**found, "train_tiles": len(parts["train"]), "test_tiles": len(parts["test"])}


def measure_speed(rounds: int) -> dict[str, Any]:
    """Images a second of one model, by plain Keras' `fit` and by tfgpu's."""
    with tempfile.TemporaryDirectory() as place:
        random = np.random.RandomState(0)
        coco(Path(place), "train", SHAPES, [shapes(random) for _ in range(128)])
        coco(Path(place), "test", SHAPES, [shapes(random) for _ in range(4)])
        options = {"task": "detection", "model": "centernet", "dataset": f"coco:{place}"}
        return tasks.throughput({**options, "batch_size": 8}, rounds=rounds)


def main() -> None:
    """Measures what is named, and writes it after each run: what is not measured now stays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default="shapes,trees,speed")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--held_out", default=HELD_OUT, help="an image of trees")
    parser.add_argument("--drawn", type=Path, default=Path("runs/trees"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    def keep(part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        result = written("detection.json")
        result[part] = change(result.get(part, {})) | {"machine": machine()}
        write("detection.json", result)

    for part in options.parts.split(","):
        if part == "speed":
            speed = measure_speed(options.rounds)
            keep(part, lambda known, speed=speed: speed)
            continue
        seeds = [int(seed) for seed in options.seeds.split(",")]
        for seed in seeds:
            if part == "shapes":
                run = measure_shapes(seed)
                keep(part, lambda known, run=run: with_runs(known, [run]))
            else:
                name = options.held_out
                drawn = options.drawn / Path(name).stem if seed == seeds[0] else None
                run = measure_trees(options.folder, name, seed, drawn)
                keep(
                    part,
                    lambda known, run=run, name=name: {
                        **known,
                        name: with_runs(known.get(name, {}), [run]),
                    },
                )
            print(f"{part}: {run}", flush=True)


if __name__ == "__main__":
    main()
