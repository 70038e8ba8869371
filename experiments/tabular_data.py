"""Tables for `tables.py`: one of scikit-learn's, and one that is made up."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

HOUSING_COLUMNS = (
    *("income", "house_age", "rooms", "bedrooms", "population", "occupants", "latitude"),
    *("longitude", "value"),
)


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a table."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def breast_cancer(path: Path) -> Path:
    """scikit-learn's breast cancer table: 569 rows, 30 numbers, and the column `diagnosis`."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    rows = [
        [*map(float, row), found.target_names[label]]
        for row, label in zip(found.data.tolist(), found.target.tolist(), strict=True)
    ]
    return write(path, [*found.feature_names.tolist(), "diagnosis"], rows)


def housing(path: Path, count: int = 20640, seed: int = 0) -> Path:
    """Made-up blocks of houses with the columns and the kind of dependence of California housing.

    The value rises with income, less and less; falls with the distance to a coast and to a few
    towns, in each by another measure; has thresholds in age, interactions of income and place, and
    noise; and is cut off at the top, as the real one is. The features have heavy tails. The noise
    alone keeps R² below about 0.9.
    """
    random = np.random.RandomState(seed)
    towns = np.array([[37.8, -122.3], [34.05, -118.3], [32.8, -117.1], [38.6, -121.4]])
    own = random.randint(len(towns) + 1, size=count)
    spread = np.array([0.25, 0.35, 0.2, 0.3, 0.0])[own, None]
    wide = np.stack([random.uniform(33, 41, count), random.uniform(-123, -115, count)], axis=1)
    place = np.vstack([towns, [[0, 0]]])[own] + random.normal(0, 1, (count, 2)) * spread
    place[own == len(towns)] = wide[own == len(towns)]
    income = np.clip(random.lognormal(1.25, 0.45, count), 0.5, 15)
    age = random.randint(1, 53, count)
    rooms = np.clip(2.5 + 0.6 * income + random.gamma(2, 0.5, count), 1, 60)
    bedrooms = rooms * random.uniform(0.16, 0.26, count)
    population = np.clip(random.lognormal(7.0, 0.7, count), 5, 30000).round()
    occupants = np.clip(random.lognormal(1.0, 0.25, count), 0.8, 12)
    coast = np.abs(place[:, 1] + 122.5 - 0.62 * (38.5 - place[:, 0]))
    distance = np.linalg.norm(place[:, None] - towns[None], axis=-1)
    near = (np.array([1.6, 1.1, 0.8, 0.3]) * np.exp(-distance / 0.35)).sum(axis=1)
    value = (
        0.9 * np.log1p(income)
        + 0.12 * income * np.exp(-coast)
        + near * (0.6 + 0.1 * np.minimum(income, 6))
        + 0.35 * (age > 45)
        - 0.2 * ((age > 15) & (age < 25))
        - 0.25 * np.log(occupants)
        - 0.8 * (bedrooms / rooms - 0.21)
        + 0.15 * np.sin(3 * place[:, 0]) * (place[:, 1] > -119)
    )
    value = np.clip(value + random.normal(0, 0.3, count), 0.15, 5.0)
    table = np.stack(
        [income, age, rooms, bedrooms, population, occupants, place[:, 0], place[:, 1], value],
        axis=1,
    )
    return write(path, HOUSING_COLUMNS, table.round(4).tolist())
