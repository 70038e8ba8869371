"""lenet on CIFAR-10 with the best settings of half an hour's search on 2 cores.

    python -m tfgpu.train --experiment=experiments/cifar10_tuned.py

Found by the command in `experiments/search_recipe.py`: 30 trials of 6 epochs, compared by a
tenth of the training images. As many epochs as `experiments/cifar10.py`, which has the defaults;
with batches of 32 they take about twice as long. Three seeds of both are in
`experiments/results/figures.json`.
"""


def config() -> dict[str, object]:
    """The settings; flags beside `--experiment` win."""
    return {
        "dataset": "cifar10",
        "validation_fraction": 0.0,
        "model": "lenet",
        "batch_size": 32,
        "epochs": 6,
        "optimizer": "sgd",
        "learning_rate": 0.03951159857999515,
        "momentum": 0.8262204659187435,
        "weight_decay": 0.005539319272481422,
        "lr_schedule": "linear",
        "warmup_epochs": 1.9279296743509198,
        "augment": "flip",
    }
