"""Boxes drawn over images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont


class Box(NamedTuple):
    """One box to draw, or to say.

    Attributes:
        corners: top, left, bottom, right, in pixels of the image.
        label: Of its class.
        score: From 0 to 1; None for a box of the data.
    """

    corners: tuple[float, float, float, float]
    label: int
    score: float | None = None


def colour(label: int) -> tuple[int, int, int]:
    """A colour for a class, far in hue from that of the next."""
    red, green, blue = colorsys.hsv_to_rgb((0.33 + label * 0.381966) % 1.0, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: np.ndarray, boxes: Sequence[Box], names: Sequence[str] = ()) -> np.ndarray:
    """An image with boxes.

    Args:
        image: uint8 (height, width, 1 or 3).
        boxes: The surest first, which are drawn last.
        names: Of the classes, written into the boxes with the scores; () writes nothing.

    Returns:
        uint8 (height, width, 3).
    """
    sheet = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    pen = ImageDraw.Draw(sheet)
    line = max(1, round(min(image.shape[:2]) / 300))
    font = ImageFont.load_default(max(9, min(image.shape[:2]) // 45))
    for box in reversed(boxes):
        top, left, bottom, right = box.corners
        ink = colour(box.label)
        # The box holds what is between its corners: its last pixels are the ones before them.
        last = max(left, right - 1), max(top, bottom - 1)
        pen.rectangle((left, top, *last), outline=ink, width=line)
        if names:
            text = names[box.label] + ("" if box.score is None else f" {box.score:.2f}")
            _, _, wide, high = pen.textbbox((0, 0), text, font=font)
            place = left, max(0.0, top - high - 2)
            pen.rectangle((*place, place[0] + wide + 2, place[1] + high + 2), fill=ink)
            pen.text((place[0] + 1, place[1]), text, (0, 0, 0), font=font)
    return np.asarray(sheet)
