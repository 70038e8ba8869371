"""Generated ratings: users and items of two tastes, and a rating that says whether they meet."""

import csv

import numpy as np


def interactions(count, *, users=40, items=30, seed=0):
    """Distinct pairs (user, item, rating, time): users of odd number like items of odd number."""
    random = np.random.RandomState(seed)
    pairs = random.permutation(users * items)[:count]
    rows = []
    for time, pair in enumerate(pairs):
        user, item = divmod(int(pair), items)
        rating = (4 if user % 2 == item % 2 else 2) + int(random.randint(-1, 2))
        rows.append((user + 100, f"item {item}", rating, 1000 + time))
    return rows


def write(path, rows, *, header=("user", "item", "rating", "timestamp")):
    """Writes a table; returns its path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
