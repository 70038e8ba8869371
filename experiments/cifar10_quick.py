"""lenet on CIFAR-10, all 50,000 training images: 0.62 test accuracy in three epochs.

    python -m tfgpu.train --experiment=experiments/cifar10_quick.py

Needs CIFAR-10 as `experiments/cifar10.py` says. The same settings in half the epochs. Three seeds,
with their times, are in `experiments/results/figures.json` and `experiments/README.md`.
"""


def config() -> dict[str, object]:
    """The settings; flags beside `--experiment` win."""
    return {
        "dataset": "cifar10",
        "validation_fraction": 0.0,
        "model": "lenet",
        "batch_size": 128,
        "epochs": 3,
        "optimizer": "sgd",
        "learning_rate": 0.06,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "lr_schedule": "cosine",
        "warmup_epochs": 0.6,
        "augment": "none",
    }
