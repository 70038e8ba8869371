"""A space for the architecture of `lenet`: its width and depth, with the rate that each takes.

    python -m tfgpu.tune --space=experiments/search_architecture.py --dataset=cifar10 --epochs=6 \\
        --max_minutes=30 --run_dir=runs/architecture

Wider and deeper networks do better and take longer; `trials.jsonl` has `parameters` and `seconds`
beside each score.
"""


def space(hp) -> dict[str, object]:
    """Settings of a run, from KerasTuner's hyperparameters."""
    return {
        "width": hp.Choice("width", [0.5, 1.0, 2.0, 4.0], default=1.0),
        "depth": hp.Int("depth", 1, 4, default=2),
        "learning_rate": hp.Float("learning_rate", 0.01, 0.2, sampling="log", default=0.06),
    }
