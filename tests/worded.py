"""Generated reviews: a text is good or bad by one word in it, among words that say nothing."""

import csv

import numpy as np

GOOD, BAD = ("fine", "lovely", "moving"), ("dull", "hollow", "tired")
NEUTRAL = ("a", "film", "of", "the", "sea", "with", "people", "in", "winter", "and", "night")


def texts(count, *, seed=0):
    """Texts and labels, half of them "good"."""
    random = np.random.RandomState(seed)
    rows = []
    for i in range(count):
        words = list(random.choice(NEUTRAL, random.randint(3, 9)))
        words.insert(random.randint(len(words)), random.choice((GOOD, BAD)[i % 2]))
        rows.append((" ".join(words), ("good", "bad")[i % 2]))
    return rows


def write(path, rows, *, header=("text", "label"), encoding="utf-8"):
    """Writes a table; returns its path."""
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
