"""Generated images with boxes: circles, squares and triangles on noise, as a COCO file."""

import json

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("circle", "square", "triangle")
CORNERS = {"triangle": ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0))}


def picture(random, *, size=(64, 64), most=3, least=0, sides=(12, 28)):
    """An image and its boxes: (left, top, width, height, class), apart from each other."""
    height, width = size
    image = Image.fromarray(random.randint(60, 110, (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    boxes = []
    for _ in range(random.randint(least, most + 1)):
        for _ in range(20):  # Until there is room.
            wide, high = random.randint(sides[0], sides[1] + 1, 2).tolist()
            left, top = random.randint(0, width - wide + 1), random.randint(0, height - high + 1)
            if all(_apart((left, top, wide, high), box) for box in boxes):
                break
        else:
            continue
        label = random.randint(len(NAMES))
        colour = tuple(random.randint(130, 256, 3).tolist())
        place = (left, top, left + wide - 1, top + high - 1)
        if NAMES[label] == "circle":
            pen.ellipse(place, fill=colour)
        elif NAMES[label] == "square":
            pen.rectangle(place, fill=colour)
        else:
            points = CORNERS["triangle"]
            pen.polygon([(left + x * (wide - 1), top + y * (high - 1)) for x, y in points], colour)
        boxes.append((left, top, wide, high, label))
    return np.asarray(image), boxes


def _apart(box, other):
    """Whether two boxes overlap little: by less than a fifth of the smaller."""
    wide = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    high = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(0, wide) * max(0, high) < 0.2 * min(box[2] * box[3], other[2] * other[3])


def write(root, count, *, seed=0, file="boxes.json", folder="images", **settings):
    """Writes images and their annotations below a folder; returns the path of the JSON file."""
    random = np.random.RandomState(seed)
    (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        image, boxes = picture(random, **settings)
        name = f"{i:04d}.png"
        Image.fromarray(image).save(root / folder / name)
        images.append(
            {"id": i + 1, "file_name": name, "height": image.shape[0], "width": image.shape[1]}
        )
        for *box, label in boxes:
            one = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1}
            area = box[2] * box[3]
            annotations.append({**one, "bbox": list(map(int, box)), "area": area, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root / file
