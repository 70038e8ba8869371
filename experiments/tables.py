"""The task `tabular` on two tables, beside scikit-learn and beside plain Keras.

    python experiments/tables.py [--rounds=7]

`breast_cancer` is scikit-learn's table of 569 tumours with 30 numbers, which it brings along.
Each seed makes five folds of it at random; each fold is the test once, and accuracy and the area
under the ROC curve are the means over the five. The yardstick is logistic regression of
standardised numbers on the same folds.

`housing` is made up, with 20,640 rows of the columns of California housing and a dependence of its
kind (`tabular_data.py` says which). Each seed holds a fifth back. The yardstick is scikit-learn's
gradient boosting, `HistGradientBoostingRegressor`, with its defaults, on the same split.

Both are trained with the defaults. Writes `experiments/results/tables.json`; takes about 10 minutes
on two cores.

What it cannot show: the defaults were chosen on folds of these very tables, so the figures are a
little too good for new data; the made table follows a smooth formula with a few thresholds, and
says nothing of the real one; neither has categories or empty cells.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tabular_data
import tasks
from versus import machine, write

SEEDS = (0, 1, 2)
FOLDS = 5
Rows = list[dict[str, str]]


def folded(rows: Rows, seed: int, fold: int, folder: Path) -> tuple[Rows, Rows]:
    """Writes train.csv and test.csv of a fold; returns both."""
    order = np.random.RandomState(seed).permutation(len(rows))
    held = set(np.array_split(order, FOLDS)[fold].tolist())
    parts: dict[str, Rows] = {"train": [], "test": []}
    for i, row in enumerate(rows):
        parts["test" if i in held else "train"].append(row)
    for name, some in parts.items():
        tabular_data.write(folder / f"{name}.csv", list(rows[0]), [list(r.values()) for r in some])
    return parts["train"], parts["test"]


def numbers(rows: Rows, target: str) -> np.ndarray:
    """The columns but the target, float64 (n, columns)."""
    return np.array([[float(cell) for name, cell in row.items() if name != target] for row in rows])


def logistic_regression(train: Rows, test: Rows) -> dict[str, float]:
    """Accuracy and area under the ROC curve of the linear model."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = [[row["diagnosis"] for row in some] for some in (train, test)]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(numbers(train, "diagnosis"), labels[0])
    x = numbers(test, "diagnosis")
    positive = np.array(labels[1]) == model.classes_[1]
    return {
        "accuracy": float(model.score(x, labels[1])),
        "auc": float(roc_auc_score(positive, model.decision_function(x))),
    }


def boosting(train: Rows, test: Rows, seed: int) -> dict[str, float]:
    """R², RMSE and MAE of gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    y = [np.array([float(row["value"]) for row in some]) for some in (train, test)]
    model = HistGradientBoostingRegressor(random_state=seed)
    model.fit(numbers(train, "value"), y[0])
    errors = model.predict(numbers(test, "value")) - y[1]
    return {
        "r2": float(1 - np.square(errors).sum() / np.square(y[1] - y[1].mean()).sum()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "mae": float(np.abs(errors).mean()),
    }


def mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


def median(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def main() -> None:
    """Measures both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    measured: dict[str, Any] = {"machine": machine(), "tables": {}}
    with tempfile.TemporaryDirectory() as place:
        tables = {
            "breast_cancer": (tabular_data.breast_cancer(Path(place, "cancer.csv")), "diagnosis"),
            "housing": (tabular_data.housing(Path(place, "housing.csv")), "value"),
        }
        for name, (path, target) in tables.items():
            rows = tasks.read(path)
            ours: list[dict[str, float]] = []
            theirs: list[dict[str, float]] = []
            names = ("accuracy", "auc") if name == "breast_cancer" else ("r2", "rmse", "mae")
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as parts:
                    folders, other = [], []
                    for fold in range(FOLDS if name == "breast_cancer" else 1):
                        folder = Path(parts, str(fold))
                        folder.mkdir()
                        folders.append(folder)
                        train, test = folded(rows, seed, fold, folder)
                        other.append(
                            logistic_regression(train, test)
                            if name == "breast_cancer"
                            else boosting(train, test, seed)
                        )
                    flags = ["--task=tabular", f"--target={target}", "--tensorboard=none"]
                    found = tasks.train_all([f"csv:{each}" for each in folders], flags, seed)
                own = [
                    {each: evaluation[each] for each in names}
                    | {each: result[each] for each in ("train_seconds", "total_seconds")}
                    for result, evaluation in found
                ]
                ours.append({"seed": seed, **mean(own)})
                theirs.append({"seed": seed, **mean(other)})
                print(name, ours[-1], theirs[-1], flush=True)
            speed = tasks.throughput(
                {
                    **{"task": "tabular", "model": "piecewise", "dataset": f"csv:{path}"},
                    **{"target": target, "batch_size": 32 if name == "breast_cancer" else 256},
                },
                rounds=options.rounds,
            )
            print(name, median(ours), median(theirs), speed["ratio"], flush=True)
            measured["tables"][name] = {
                "rows": len(rows),
                "tfgpu": {"median": median(ours), "runs": ours},
                "scikit_learn": {"median": median(theirs), "runs": theirs},
                "rows_per_second": speed,
            }
    write("tables.json", measured)


if __name__ == "__main__":
    main()
