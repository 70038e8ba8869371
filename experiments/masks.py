"""The task `segmentation` on cell nuclei and on lesions, beside plain Keras.

    python experiments/masks.py FOLDER [--sets=nuclei,lesions]

FOLDER holds `nuclei`, 64 tiles of 64×64 pixels of one microscope image (from stardist 0.9.2, BSD),
and `lesions`, 178 slices of MRI and CT with a lesion marked in 27 of them (from pyradiomics 3.0.1,
BSD); each with folders `images` and `masks`. Each seed takes a fifth at random for the test, and
trains on the rest with the defaults; the lesions are brought to 96×96, for one seed. Writes
`experiments/results/masks.json`; takes about 15 minutes on two cores.

What it cannot show: the tiles are neighbours in one image, so nothing of other microscopes; and 27
slices with a lesion prove no quality, only that the way works.
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

SETS: dict[str, dict[str, Any]] = {
    "nuclei": {"seeds": (0, 1, 2), "flags": []},
    "lesions": {"seeds": (0,), "flags": ["--image_size=96", "--epochs=40", "--batch_size=4"]},
}
KEPT = ("test_dice", "test_mean_iou", "test_loss", "train_seconds", "process_seconds")
KEPT += ("user_seconds",)


def split(place: Path, seed: int, folder: Path) -> int:
    """Links the images and masks of `place` into train/ and test/; returns the size of the test."""
    images = sorted(path.name for path in (place / "images").iterdir())
    order = np.random.RandomState(seed).permutation(len(images))
    count = len(images) // 5
    for part, some in (("test", order[:count]), ("train", order[count:])):
        for kind in ("images", "masks"):
            target = folder / part / kind
            target.mkdir(parents=True)
            for number in some:
                (target / images[number]).symlink_to((place / kind / images[number]).resolve())
    return count


def main() -> None:
    """Measures what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "sets": {}}
    for name in options.sets.split(","):
        about, runs, tested = SETS[name], [], 0
        for seed in about["seeds"]:
            with tempfile.TemporaryDirectory() as place:
                tested = split(options.folder / name, seed, Path(place))
                run = tasks.train(f"folder:{place}", about["flags"], seed)
            runs.append({"seed": seed, **{key: run[key] for key in KEPT}})
            dice, seconds = run["test_dice"], run["process_seconds"]
            print(f"{name} seed {seed}: Dice {dice:.4f}, {seconds:.0f} s", flush=True)
        result["sets"][name] = {
            "test_images": tested,
            "flags": about["flags"],
            "median": {key: statistics.median(run[key] for run in runs) for key in KEPT},
            "runs": runs,
        }
        if not about["flags"]:
            speed = tasks.throughput(
                {
                    **{"task": "segmentation", "model": "unet", "batch_size": 8},
                    "dataset": f"folder:{options.folder / name}",
                },
                rounds=options.rounds,
            )
            result["sets"][name]["images_per_second"] = speed
            ratio = speed["ratio"]
            print(f"tfgpu over Keras {ratio['median']:.2f} ({ratio['low']:.2f})", flush=True)
    write("masks.json", result)


if __name__ == "__main__":
    main()
