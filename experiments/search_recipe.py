"""A space for `lenet` as it is: how to train it, and nothing about its architecture.

    python -m tfgpu.tune --space=experiments/search_recipe.py --dataset=cifar10 --epochs=6 \\
        --tuner=bayesian --max_trials=1000 --max_minutes=30 --run_dir=runs/search

`experiments/cifar10_tuned.py` is what half an hour of it found on 2 cores.
"""


def space(hp) -> dict[str, object]:
    """Settings of a run, from KerasTuner's hyperparameters."""
    return {
        "optimizer": "sgd",
        "learning_rate": hp.Float("learning_rate", 0.01, 0.3, sampling="log", default=0.06),
        "momentum": hp.Float("momentum", 0.8, 0.98, default=0.9),
        "weight_decay": hp.Float("weight_decay", 1e-4, 0.1, sampling="log", default=0.01),
        "batch_size": hp.Choice("batch_size", [32, 64, 128, 256], default=128),
        "lr_schedule": hp.Choice("lr_schedule", ["cosine", "linear"]),
        "warmup_epochs": hp.Float("warmup_epochs", 0.2, 2.0, default=1.2),
        "augment": hp.Choice("augment", ["none", "flip"]),
    }
