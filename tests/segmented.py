"""Generated images with masks: a red and a blue box on noise."""

import numpy as np
from PIL import Image

COLOURS = {1: (200, 40, 40), 2: (40, 40, 200)}


def pair(random, *, size=(24, 32), values=(0, 1, 2)):
    """An image and its mask; `values` are those of background, red and blue."""
    height, width = size
    image = random.randint(0, 60, (height, width, 3)).astype(np.uint8)
    mask = np.full(size, values[0], np.uint8)
    for number, colour in COLOURS.items():
        top, left = random.randint(0, height - 8), random.randint(0, width - 8)
        box = slice(top, top + random.randint(5, 9)), slice(left, left + random.randint(5, 9))
        image[box] = np.clip(colour + random.randint(-30, 30, image[box].shape), 0, 255)
        mask[box] = values[number]
    return image, mask


def write(root, count, *, seed=0, **settings):
    """Writes `images` and `masks` below a folder; returns it."""
    random = np.random.RandomState(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, mask = pair(random, **settings)
        Image.fromarray(image).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:03d}.png")
    return root
