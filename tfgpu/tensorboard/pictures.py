"""Pictures for TensorBoard's Images tab, drawn with Pillow: (height, width, 3) arrays of uint8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL, _MARGIN = 96, 4
_TEXT = (32, 32, 32)
_PAPER = (255, 255, 255)
_NAMED_CLASSES = 30  # A confusion matrix of more classes is drawn without numbers and names.


class Picture(NamedTuple):
    """What a tag of TensorBoard shows: an image, or text."""

    content: np.ndarray | str  # uint8 (height, width, 3), or Markdown.
    description: str = ""


def grid(images: np.ndarray, captions: Sequence[Sequence[str]] | None = None) -> np.ndarray:
    """Arranges images in a square grid, each with lines of text below it.

    Args:
        images: uint8 (n, height, width, 1 or 3), n at least 1.
        captions: The lines of each image.

    Returns:
        uint8 (height, width, 3). Small images are enlarged by a whole factor, without blurring.
    """
    height, width = images.shape[1:3]
    factor = max(1, _CELL // max(height, width))
    lines = max((len(caption) for caption in captions), default=0) if captions else 0
    font = ImageFont.load_default(11)
    line = 14
    cell_height = height * factor + lines * line + _MARGIN
    cell_width = max(width * factor, _CELL if lines else 0) + _MARGIN
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left = _MARGIN + i % columns * cell_width
        top = _MARGIN + i // columns * cell_height
        pixels = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
        picture = Image.fromarray(pixels).resize(
            (width * factor, height * factor), Image.Resampling.NEAREST
        )
        sheet.paste(picture, (left, top))
        for number, text in enumerate(captions[i] if captions else ()):
            at = (left, top + height * factor + number * line)
            draw.text(at, _fitting(draw, text, cell_width - _MARGIN, font), _TEXT, font=font)
    return np.asarray(sheet)


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix: true classes downwards, predicted ones across, darker for more.

    Args:
        matrix: (classes, classes) counts, true class first.
        class_names: One for each class.

    Returns:
        uint8 (height, width, 3).
    """
    classes = len(matrix)
    # Relative to the true class, so that a rare class is as visible as a frequent one.
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if classes > _NAMED_CLASSES:
        factor = max(1, 600 // classes)
        return np.kron(_blues(fractions), np.ones((factor, factor, 1), np.uint8))
    font = ImageFont.load_default(11)
    cell, names, head = 40, 84, 34
    size = (names + classes * cell + _MARGIN, head + classes * cell + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 2), "true \\ predicted", _TEXT, font=font)
    colours = _blues(fractions)
    for i in range(classes):
        name = str(class_names[i])
        row, column = head + i * cell, names + i * cell
        draw.text((_MARGIN, row + 13), _fitting(draw, name, names - 8, font), _TEXT, font=font)
        draw.text((column + 3, 18), _fitting(draw, name, cell - 4, font), _TEXT, font=font)
        for j in range(classes):
            left = names + j * cell
            colour = tuple(int(part) for part in colours[i, j])
            draw.rectangle((left, row, left + cell - 2, row + cell - 2), fill=colour)
            if matrix[i, j]:
                text = f"{int(matrix[i, j])}"
                ink = _PAPER if fractions[i, j] > 0.5 else _TEXT
                draw.text((left + 4, row + 13), text, ink, font=font)
    return np.asarray(sheet)


def _blues(fractions: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to colours from white to dark blue."""
    dark = np.array([8, 48, 107])
    colours = 255 + fractions[..., None] * (dark - 255)
    return colours.round().astype(np.uint8)


def _fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    text = " ".join(text.split("\n"))
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
