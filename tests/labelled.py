"""Generated images with several labels: a square of a colour for each label that an image has."""

import csv

import numpy as np
from PIL import Image

LABELS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
SIDE = 16


def images(folder, count, *, seed=0):
    """Writes images below `folder`; returns (name, 0 or 1 for each of LABELS) of each."""
    random = np.random.RandomState(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        pixels = random.randint(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
        flags = [int(random.uniform() < share) for share in (0.5, 0.4, 0.2)]
        for place, (flag, colour) in enumerate(zip(flags, LABELS.values(), strict=True)):
            if flag:
                left = 5 * place + random.randint(0, 2)
                top = random.randint(0, SIDE - 4)
                pixels[top : top + 4, left : left + 4] = colour
        name = f"images/{i:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append((name, *flags))
    return rows


def write(path, rows, *, header=("image", *LABELS)):
    """Writes a table; returns its path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def as_lists(rows, separator="|"):
    """The same rows with a list of labels in the place of the flags."""
    return [
        (name, separator.join(each for each, flag in zip(LABELS, flags, strict=True) if flag))
        for name, *flags in rows
    ]
