"""Generated tables: a price and a class that follow from numbers and categories by a rule."""

import csv

import numpy as np

HEADER = ("city", "age (years)", "size", "note", "price", "tall")
CITIES = {"ulm": 0.0, "bonn": 20.0, "mainz": 40.0}


def homes(count, *, seed=0, missing=0.1):
    """Rows of HEADER; of the ages some are empty."""
    random = np.random.RandomState(seed)
    rows = []
    for i in range(count):
        city, age = random.choice(list(CITIES)), int(random.randint(1, 60))
        size = round(float(random.uniform(20, 120)), 2)
        price = round(1000 + 2 * size + CITIES[city] - 0.5 * age + float(random.normal()), 3)
        shown = "" if random.uniform() < missing else age
        rows.append((city, shown, size, f"home {i}", price, "yes" if size > 70 else "no"))
    return rows


def write(path, rows, *, header=HEADER):
    """Writes a table; returns its path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
