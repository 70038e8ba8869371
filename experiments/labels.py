"""The task `multilabel` on collages of handwritten digits, beside scikit-learn and plain Keras.

    python experiments/labels.py [--rounds=7]

The images are made here, of real ones: scikit-learn brings 1,797 handwritten digits of 8x8 pixels,
of which a fifth at random, by the seed, is for the test. A collage of 32x32 pixels has four cells;
each is empty with a probability of 0.4, or has a digit of its split at twice its size, moved by up
to two pixels. Its labels are the digits that it shows: 2.2 of 10 on average, and none on one in 40.
4,000 collages to train on, of which a fifth is for validation, and 1,000 for the test.

The yardstick is scikit-learn's logistic regression on the pixels, one for each label, and what
answers that know nothing reach. Thresholds are those of best F1 on the validation collages, for
tfgpu and for the yardstick alike. Writes `experiments/results/labels.json`; takes about 6 minutes
on two cores.

What it cannot show: how good a model is on photographs; nor labels that depend on each other.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from PIL import Image
from versus import machine, write

SEEDS = (0, 1, 2)
COUNTS = {"train": 3200, "validation": 800, "test": 1000}
FLAGS = ("--width=2", "--epochs=40", "--augment=crop")
FLAGS += ("--validation_fraction=0.2", "--tensorboard=none")
NAMES = tuple(f"has_{digit}" for digit in range(10))
CELL = 16
EMPTY = 0.4
KEPT = ("map", "macro_f1", "micro_f1", "exact_match")

Split = tuple[np.ndarray, np.ndarray]


def collages(seed: int) -> dict[str, Split]:
    """uint8 images (n, 32, 32) and labels (n, 10) of 0 and 1, of each split."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    random = np.random.RandomState(seed)
    order = random.permutation(len(digits))
    cut = len(digits) // 5
    found = {}
    for split, count in COUNTS.items():
        own = order[:cut] if split == "test" else order[cut:]
        images = np.zeros((count, 2 * CELL, 2 * CELL), np.uint8)
        labels = np.zeros((count, 10), np.int64)
        for image, label in zip(images, labels, strict=True):
            for top in (0, CELL):
                for left in (0, CELL):
                    if random.uniform() < EMPTY:
                        continue
                    one = random.choice(own)
                    grown = pixels[one].repeat(2, axis=0).repeat(2, axis=1)
                    moved = np.roll(grown, random.randint(-2, 3, 2), axis=(0, 1))
                    image[top : top + CELL, left : left + CELL] = moved
                    label[digits[one]] = 1
        found[split] = images, labels
    return found


def save(parts: dict[str, Split], folder: Path) -> None:
    """Writes train.csv, with the validation behind it, and test.csv, and their images."""
    for split, names in (("train", ("train", "validation")), ("test", ("test",))):
        (folder / split).mkdir(parents=True)
        images, labels = (np.concatenate([parts[name][i] for name in names]) for i in (0, 1))
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", *NAMES])
            for i, (image, row) in enumerate(zip(images, labels, strict=True)):
                name = f"{split}/{i:04d}.png"
                Image.fromarray(image).save(folder / name)
                rows.writerow([name, *row.tolist()])


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The score with the best F1 as a threshold."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])


def logistic_regression(parts: dict[str, Split]) -> dict[str, Any]:
    """Test figures of one regression a label, and the mean AP of answers that know nothing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, f1_score

    x = {name: images.reshape(len(images), -1) / 255.0 for name, (images, _) in parts.items()}
    y = {name: labels for name, (_, labels) in parts.items()}
    precisions, found = [], []
    for i in range(len(NAMES)):
        model = LogisticRegression(C=0.1, max_iter=1000).fit(x["train"], y["train"][:, i])
        scores = {name: model.decision_function(x[name]) for name in ("validation", "test")}
        precisions.append(average_precision_score(y["test"][:, i], scores["test"]))
        threshold = best_threshold(y["validation"][:, i], scores["validation"])
        found.append(scores["test"] >= threshold)
    decided = np.stack(found, axis=1)
    return {
        "map": float(np.mean(precisions)),
        "macro_f1": float(f1_score(y["test"], decided, average="macro")),
        "micro_f1": float(f1_score(y["test"], decided, average="micro")),
        "exact_match": float((decided == y["test"]).all(axis=1).mean()),
        "f1": f1_score(y["test"], decided, average=None).tolist(),
        "map_of_nothing": float(y["test"].mean()),
    }


def medians(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Of the runs, by name."""
    return {name: statistics.median(run[name] for run in runs) for name in names}


def main() -> None:
    """Measures, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of the rates")
    options = parser.parse_args()
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            folder, parts = Path(place, str(seed)), collages(seed)
            save(parts, folder)
            theirs.append({"seed": seed, **logistic_regression(parts)})
            ((result, evaluation),) = tasks.train_all([f"csv:{folder}"], FLAGS, seed)
            ours.append(
                {
                    "seed": seed,
                    **{name: evaluation[name] for name in KEPT},
                    "labels": {
                        row["name"]: {
                            "f1": row["f1"],
                            "threshold": row["threshold"],
                            "average_precision": row["average_precision"],
                        }
                        for row in evaluation["labels"]
                    },
                    "train_seconds": result["train_seconds"],
                    "total_seconds": result["total_seconds"],
                }
            )
            shown = [
                f"{one['map']:.4f}, F1 {one['macro_f1']:.4f}" for one in (ours[-1], theirs[-1])
            ]
            print(f"seed {seed}: mAP {shown[0]}; logistic regression {shown[1]}", flush=True)
        speed = tasks.throughput(
            {"task": "multilabel", "model": "lenet", "dataset": f"csv:{folder}", "batch_size": 128},
            rounds=options.rounds,
        )
    ratio = speed["ratio"]
    print(f"tfgpu over Keras {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})")
    result = {
        "machine": machine(),
        "images": COUNTS,
        "flags": list(FLAGS),
        "tfgpu": {"median": medians(ours, (*KEPT, "total_seconds")), "runs": ours},
        "logistic_regression": {
            "median": medians(theirs, (*KEPT, "map_of_nothing")),
            "runs": theirs,
        },
        "images_per_second": speed,
    }
    write("labels.json", result)


if __name__ == "__main__":
    main()
