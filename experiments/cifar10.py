"""lenet on CIFAR-10, all 50,000 training images: 0.66 test accuracy in half a minute.

    python -m tfgpu.train --experiment=experiments/cifar10.py

Needs CIFAR-10 prepared for TFDS (`tfds build cifar10`), in TFDS's own folder or the one
that TFDS_DATA_DIR names. Expected on 2 cores of a 2.6 GHz AMD EPYC (Zen 4), with the images
JPEG-coded (which costs up to a point of accuracy): see the three seeds in
`experiments/results/figures.json`. The settings are the defaults of the main job, but for
the validation split.
"""


def config() -> dict[str, object]:
    """The settings; flags beside `--experiment` win."""
    return {
        "dataset": "cifar10",
        "validation_fraction": 0.0,
        "model": "lenet",
        "batch_size": 128,
        "epochs": 6,
        "optimizer": "sgd",
        "learning_rate": 0.06,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "lr_schedule": "cosine",
        "warmup_epochs": 1.2,
        "augment": "none",
    }
