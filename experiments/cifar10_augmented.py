"""lenet on CIFAR-10 with augmentation and averaging: 0.737 test accuracy, 0.763 over six views.

    python -m tfgpu.train --experiment=experiments/cifar10_augmented.py --run_dir=runs/augmented
    python -m tfgpu.evaluate --run_dir=runs/augmented --views=mirror_shift

Needs CIFAR-10 as `experiments/cifar10.py` says. Random flips and crops; the model that is kept is
the exponential average of the weights, and the second command averages its outputs over six views
of each test image. The network is too small for what it is shown: at the end it is right on 0.72 of
the augmented training images, and twice the epochs, at a higher rate and a lower decay, gave 0.739
and 0.765. Took ten minutes of training on 2 cores of an AMD EPYC beside other work. Seeds and times
go to `experiments/results/figures.json` (`figures.py cifar10_augmented --views=mirror_shift`).

These are the first settings that were tried, of two; both were compared on the test images.
"""


def config() -> dict[str, object]:
    """The settings; flags beside `--experiment` win."""
    return {
        "dataset": "cifar10",
        "validation_fraction": 0.0,
        "model": "lenet",
        "batch_size": 128,
        "epochs": 60,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.003,
        "lr_schedule": "cosine",
        "warmup_epochs": 3,
        "augment": "flip,crop",
        "ema_momentum": 0.999,
    }
