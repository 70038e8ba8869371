"""The task `recommendation` on MovieLens-100K, beside simple models and beside plain Keras.

    python experiments/recommendations.py FOLDER

FOLDER holds `ratings.csv`, the 100,000 ratings of MovieLens-100K (F. M. Harper and J. A. Konstan,
ACM TiiS 5(4), 2015; from recbole 1.2.1; for research, not redistributed): columns user, item,
rating and timestamp. Each seed splits them at random, 80/20 for ratings and 75/25 for the ten best
of all items, where every rating counts as taken.

The yardsticks run on the same splits: for ratings the mean with biases of user and item, by
alternating regularised means; for the ten best the most popular items, the cosine of items, and
EASE (H. Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019). Writes
`experiments/results/recommendations.json`.

What it cannot show: the defaults were chosen on the test of another random split of these very
ratings, so the figures are a little too good for new data; and a data set of
1997 with 1,682 films says nothing of large catalogues.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from versus import machine, write

SEEDS = (0, 1, 2)
GOALS = {
    "rating": {"test": 0.2, "models": ("factors", "ranking"), "metric": "test_rmse"},
    "retrieval": {"test": 0.25, "models": ("two_tower",), "metric": "test_ndcg_at_10"},
}
BATCH = {"rating": 256, "retrieval": 64}
K = 10


def split(rows: list[dict[str, str]], share: float, seed: int, folder: Path) -> tuple[Any, Any]:
    """Writes train.csv and test.csv; returns both as arrays (n, 3) of user, item and rating."""
    count = round(len(rows) * share)
    parts = tasks.split(rows, count, seed, folder, columns=list(rows[0]))
    every = np.array([[float(row[n]) for n in ("user", "item", "rating")] for row in rows])
    train, test = (every[part] for part in parts)
    return train, test


def biases(train: np.ndarray, test: np.ndarray, *, damping: float = 5.0, rounds: int = 10) -> float:
    """RMSE of mean + bias of the user + bias of the item."""
    size = int(max(train[:, :2].max(), test[:, :2].max())) + 1
    user, item = train[:, 0].astype(int), train[:, 1].astype(int)
    mean = train[:, 2].mean()
    of_user, of_item = np.zeros(size), np.zeros(size)
    for _ in range(rounds):
        for own, other, values, against in (
            (item, user, of_item, of_user),
            (user, item, of_user, of_item),
        ):
            left = train[:, 2] - mean - against[other]
            values[:] = np.bincount(own, left, size) / (np.bincount(own, minlength=size) + damping)
    guess = mean + of_user[test[:, 0].astype(int)] + of_item[test[:, 1].astype(int)]
    return float(np.sqrt(np.mean((guess - test[:, 2]) ** 2)))


def rankings(train: np.ndarray, test: np.ndarray, *, penalty: float = 250.0) -> dict[str, float]:
    """NDCG@10 of popularity, item cosine and EASE."""
    size = int(max(train[:, 0].max(), test[:, 0].max())) + 1
    items = int(max(train[:, 1].max(), test[:, 1].max())) + 1
    taken = np.zeros((size, items))
    taken[train[:, 0].astype(int), train[:, 1].astype(int)] = 1
    gram = taken.T @ taken
    norms = np.sqrt(np.maximum(gram.diagonal(), 1))
    cosine = gram / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0)
    inverse = np.linalg.inv(gram + penalty * np.eye(items))
    ease = inverse / -inverse.diagonal()[None, :]
    np.fill_diagonal(ease, 0)
    return {
        "popularity": ndcg(np.tile(taken.sum(axis=0), (size, 1)), taken, test),
        "item_cosine": ndcg(taken @ cosine, taken, test),
        "ease": ndcg(taken @ ease, taken, test),
    }


def ndcg(scores: np.ndarray, taken: np.ndarray, test: np.ndarray) -> float:
    """NDCG@10 over all items without those that are taken, a mean over the users in the test."""
    wanted = np.zeros(taken.shape, bool)
    wanted[test[:, 0].astype(int), test[:, 1].astype(int)] = True
    best = np.argsort(-np.where(taken > 0, -np.inf, scores), axis=1, kind="stable")[:, :K]
    discounts = 1 / np.log2(np.arange(2, K + 2))
    hits = np.take_along_axis(wanted, best, axis=1) @ discounts
    count = wanted.sum(axis=1)
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])[np.minimum(count, K)]
    return float((hits / ideal)[count > 0].mean())


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    table = options.folder / "ratings.csv"
    rows = tasks.read(table)
    result: dict[str, Any] = {"machine": machine(), "ratings": len(rows), "goals": {}}
    for goal, about in GOALS.items():
        yardsticks: list[dict[str, float]] = []
        runs: dict[str, list[dict[str, Any]]] = {model: [] for model in about["models"]}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                parts = split(rows, about["test"], seed, folder)
                found = {"biases": biases(*parts)} if goal == "rating" else rankings(*parts)
                yardsticks.append(found)
                shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                print(f"{goal} seed {seed}: {shown}", flush=True)
                for model in about["models"]:
                    flags = [f"--model={model}", f"--task_options=goal={goal}"]
                    run = tasks.train(f"csv:{folder}", flags, seed)
                    kept = {name: run[name] for name in run if name.startswith("test_")}
                    kept["process_seconds"] = run["process_seconds"]
                    runs[model].append({"seed": seed, **kept})
                    figure, seconds = run[about["metric"]], run["process_seconds"]
                    print(f"  {model:<10} {figure:.4f}  {seconds:.0f} s", flush=True)
        models = {}
        for model in about["models"]:
            names = (about["metric"], "process_seconds")
            median = {name: statistics.median(run[name] for run in runs[model]) for name in names}
            speed = tasks.throughput(
                {
                    **{"task": "recommendation", "model": model, "dataset": f"csv:{table}"},
                    **{"batch_size": BATCH[goal], "task_options": {"goal": goal}},
                },
                rounds=options.rounds,
            )
            models[model] = {"median": median, "runs": runs[model], "examples_per_second": speed}
            ratio = speed["ratio"]
            print(f"{goal} {model}: {median[about['metric']]:.4f}", end=", ")
            print(f"tfgpu over Keras {ratio['median']:.2f} ({ratio['low']:.2f})", flush=True)
        medians = {
            name: statistics.median(each[name] for each in yardsticks) for name in yardsticks[0]
        }
        result["goals"][goal] = {
            "test_fraction": about["test"],
            "yardsticks": medians,
            "models": models,
        }
    write("recommendations.json", result)


if __name__ == "__main__":
    main()
