"""What the pages of the documents speak of, small and made up, for `test_snippets.py`.

Nothing of the code of a page is replaced but by `CHANGED`, and nothing is left out but by
`SKIPPED`, each with its reason.
"""

import functools
import re
import shutil

import labelled
import mocked
import numpy as np
import rated
import segmented
import shaped
import sounded
import tabled
import worded
from document_blocks import README, ROOT, blocks
from PIL import Image

# (pages, commands, reason): commands that are not run. "" is any page.
SKIPPED = [
    ("", r"\S*python3?[\d.]* -m venv |\S*pip (install|wheel) ", "installs; .ci/run and CI do"),
    ("", r"\S*python -m pytest", "runs these tests"),
    ("BUILD.md", r"docker ", "needs Docker"),
    ("BUILD.md", r"(export KERASTUNER_TUNER_ID|.* --run_dir=/shared/)", "needs several machines"),
    ("BUILD.md", r"\.ci/(distribution|lock)$", "needs a package index"),
    ("BUILD.md", r".*\.download_and_prepare\(\)", "downloads"),
    ("CONTRIBUTING.md", r".*pre-commit install", "changes the checkout"),
    ("launch.md", r"srun ", "needs a Slurm cluster"),
    ("launch.md", r"kubectl ", "needs a Kubernetes cluster"),
    ("serve.md", r"docker ", "needs Docker"),
    ("several_gpus.md", r".* --devices=GPU:0,GPU:1", "needs two GPUs"),
    ("several_machines.md", r"export |tfgpu train --strategy=multi_worker", "needs two machines"),
]

# (page, what stands there, what runs instead, reason).
CHANGED = [
    ("README.md", "--max_trials=10 --epochs=10", "--max_trials=2 --epochs=1", "time"),
    ("tune.md", "--max_trials=10 --epochs=10", "--max_trials=2 --epochs=1", "time"),
    ("bench.md", "=device,precision,xla,steps_per_execution,", "=precision,", "time"),
    ("bench.md", "224x224x3:1000", "32x32x3:1000", "time"),
    (
        "speed.md",
        "--factors=precision,xla,steps_per_execution,input",
        "--factors=precision",
        "time",
    ),
    ("speed.md", "--factors=precision,xla,batch_size", "--factors=precision", "time"),
    ("doctor.md", "--probe=mirrored,float32", "--probe=mirrored,float32,1_step,no_xla", "time"),
    ("differences.md", "--cases 600", "--cases 1", "time"),
    ("tasks.md", "--image_size=224", "--image_size=32", "time"),
    ("tasks.md", "--image_size=256x256", "--image_size=64x64", "time"),
    ("runs.md", "FOLDER", "runs", "stands for a folder"),
    ("launch.md", "--backend=ray --workers=4", "--backend=ray --workers=2", "two cores are enough"),
    ("launch.md", "| kubectl apply -f -", "> jobset.yaml", "needs a Kubernetes cluster"),
]

# Flags that come before those of the page, which win; {page: {command: flags}}. "" is any page.
FLAGS = {
    "": {
        "train": ["--epochs=1"],
        "tune": ["--epochs=1", "--max_trials=2", "--final_seeds=1"],
        "bench": ["--rounds=1", "--factors=precision"],
    },
    # Layers begin to be trained in the fourth epoch.
    "train.md": {"train": ["--epochs=4"]},
}

# (page, command, run): which of the runs that a page has made runs/NAME is; else the newest one.
NAMED = [("tasks.md", "new.wav sounds", "folder-sounds-*")]

CLASSES = {"cat": (200, 60, 40), "dog": (40, 60, 200)}


def photos(folder, count, *, seed=0):
    """Images of two classes, of different sizes."""
    random = np.random.RandomState(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = random.randint(40, 60, 2)
            image = np.clip(random.normal(colour, 40, (height, width, 3)), 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i:02d}.jpg")


def a_file_of(page, name, place):
    """Writes a Python file that another page shows."""
    path = README if page == "README.md" else ROOT / "docs" / page
    (text,) = [block.text for block in blocks(path, "python") if block.file == name]
    (place / name).write_text(text, encoding="utf-8")


def a_model_and_photos(place):
    photos(place / "photos", 20)
    shutil.copy(place / "photos" / "cat" / "00.jpg", place / "cat.jpg")
    a_file_of("train.md", "mymodels.py", place)


def homes(place, name="homes.csv"):
    tabled.write(place / name, tabled.homes(120))


def several_labels(place):
    rows = labelled.images(place, 80)
    labelled.write(place / "photos.csv", rows, header=("image", "cat", "dog", "bird"))


def of_the_readme(place):
    a_model_and_photos(place)
    segmented.write(place / "cells", 24)
    shaped.write(place, 24)
    worded.write(place / "reviews.csv", worded.texts(120))
    rated.write(place / "ratings.csv", rated.interactions(300))
    homes(place)
    several_labels(place)
    sounded.write(place / "sounds", 20)


def of_the_tasks(place):
    shaped.write(place, 24)
    worded.write(place / "reviews.csv", worded.texts(120))
    remarks = [(text, text, 1 + 4 * (label == "good")) for text, label in worded.texts(120)]
    worded.write(place / "remarks.csv", remarks, header=("title", "remark", "stars"))
    rated.write(place / "ratings.csv", rated.interactions(300))
    taken = [(user - 99, item, 1, time) for user, item, _, time in rated.interactions(300)]
    rated.write(place / "log.csv", taken, header=("who", "what", "taken", "when"))
    homes(place)
    patients = [(i, *row) for i, row in enumerate(tabled.homes(120))]
    names = ("id", "ward", "age", "size", "remark", "price", "outcome")
    tabled.write(place / "patients.csv", patients, header=names)
    tabled.write(place / "new.csv", patients[:5], header=names)
    several_labels(place)
    sounded.write(place / "sounds", 20)
    shutil.copy(place / "sounds" / "low" / "00.wav", place / "new.wav")
    np.savez(place / "mfcc.npz", **sounded.features(60))


def arrays(place):
    photos(place / "photos", 20)
    random = np.random.RandomState(0)
    digits = random.randint(0, 256, (120, 28, 28)).astype(np.uint8)
    np.savez(place / "mnist.npz", x=digits, y=np.arange(120) % 10)
    pairs = [segmented.pair(random) for _ in range(24)]
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    np.savez(place / "cells.npz", images=images, masks=masks)


def birds(place):
    a_model_and_photos(place)
    photos(place / "birds", 40, seed=1)


# What lies in the folder of a page before its first command.
FILES = {
    "README.md": of_the_readme,
    "bench.md": a_model_and_photos,
    "data.md": arrays,
    "evaluate.md": a_model_and_photos,
    "export.md": a_model_and_photos,
    "serve.md": a_model_and_photos,
    "predict.md": a_model_and_photos,
    "tasks.md": of_the_tasks,
    "train.md": birds,
}

# Finished runs that a page speaks of before it has made one: their flags, and their names.
PHOTOS = "--dataset=folder:photos --image_size=32x32 --epochs=2 --batch_size=16"
RUNS = {
    "README.md": ["NAME", "a", "b"],
    "evaluate.md": ["NAME"],
    "export.md": ["NAME"],
    "predict.md": ["NAME"],
    "report.md": ["NAME", "a", "b", "c"],
    "runs.md": ["a", "b"],
    "serve.md": ["NAME"],
    "tensorboard.md": ["a"],
    "train.md": ["NAME", "cifar10-resnet20"],
}
TRAININGS = {
    "NAME": PHOTOS,
    "a": "--epochs=2",
    "b": "--epochs=2 --seed=1",
    "c": "--epochs=2 --seed=2 --batch_size=64",
    "cifar10-resnet20": "--model=resnet20 --dataset=cifar10 --epochs=1",
}


def with_true_boxes(example):
    """An example of TFDS whose boxes, which are made up, have their corners in order."""
    import tensorflow_datasets as tfds

    def ordered(box):
        a, b, c, d = box.tolist()
        return tfds.features.BBox(min(a, c), min(b, d), max(a, c), max(b, d))

    if "head_bbox" in example:  # Of the pets, whose masks have three classes.
        mask = example["segmentation_mask"] % 3 + 1
        return {**example, "head_bbox": ordered(example["head_bbox"]), "segmentation_mask": mask}
    if "objects" not in example:
        return example
    objects = example["objects"]
    number = min(map(len, objects.values()))
    objects = {name: part[:number] for name, part in objects.items()}
    return {**example, "objects": {**objects, "bbox": [ordered(box) for box in objects["bbox"]]}}


def a_set_of_tfds(name, root):
    """Lays out examples that are made up as a prepared set of TFDS."""
    count = {"cifar10": 300, "speech_commands": 24}.get(name, 40)
    version = {"oxford_iiit_pet": "4.0.0"}.get(name, "1.0.0")
    place = root / "made" if name == "voc/2007" else root
    mocked.mocked(name, place, count, version=version, change=with_true_boxes)
    if name == "voc/2007":
        # Without a configuration in its name, and with.
        shutil.copytree(place / "voc", root / "voc")
        shutil.copytree(place / "voc", root / "voc" / "2007")


# By the value of --dataset; "voc" is made with voc/2007.
TFDS = ("cifar10", "oxford_iiit_pet", "voc/2007", "imdb_reviews", "speech_commands")


def python_names(page):
    """What the Python of a page takes for granted."""
    import keras
    import tensorflow as tf

    import tfgpu
    from tfgpu.tasks.loading import load

    def batches():
        random = np.random.RandomState(0)
        x = random.uniform(0, 255, (100, 32, 32, 3)).astype(np.float32)
        return tf.data.Dataset.from_tensor_slices((x, np.arange(100) % 10)).batch(16)

    if page == "README.md":
        return {"dataset": batches()}
    if page == "model.md":
        digits = load("digits", data_dir=None, validation_fraction=0.1, image_size=None, seed=0)
        stopping = keras.callbacks.EarlyStopping("loss", patience=1)
        names = [str(number) for number in range(10)]
        return {
            "dataset": batches(),
            "examples": digits.train,
            "early_stopping": stopping,
            "names": names,
        }
    if page == "data.md":
        inputs = keras.Input((64, 64, 3))
        model = tfgpu.Sequential([inputs, keras.layers.Flatten(), keras.layers.Dense(2)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return {"model": model}
    return {}


def skipped(page, command):
    """Why a command is not run; None if it is."""
    for where, pattern, reason in SKIPPED:
        if where in ("", page) and re.match(pattern, command):
            return reason
    return None


def changed(page, command):
    """The command that runs in the place of one."""
    for where, old, new, _ in CHANGED:
        if where == page:
            command = command.replace(old, new)
    return command


def flags_of(page):
    return FLAGS[""] | FLAGS.get(page, {})


def run_named(page, command):
    """The pattern of the run that NAME stands for in a command."""
    for where, part, pattern in NAMED:
        if where == page and part in command:
            return pattern
    return "*"


@functools.cache
def datasets_of(text):
    """The sets of TFDS in `TFDS` that commands name."""
    return [name for name in TFDS if re.search(rf"--dataset='?{name}\b|/{name}\b", text)]
