"""What `--tensorboard=default` costs a training of `lenet` at batch 512.

    python experiments/tensorboard_cost.py

Trains with the callback as `tfgpu train` sets it up and without any, in processes of their own
that take turns of one epoch of CIFAR-10's size (98 steps), and compares neighbours. The first
epoch, with the graphs and the pictures, is left out: they are written once. Takes about two
minutes. Writes `experiments/results/tensorboard_cost.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

from versus import TrainingProcess, arguments, compare, interleave, machine, spread, write

STEPS = 98


def main() -> None:
    """Runs the comparison."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch_sizes="512", rounds=9)
    options = parser.parse_args()
    rows = []
    for batch_size in map(int, options.batch_sizes.split(",")):
        processes = [
            TrainingProcess(
                name,
                "tfgpu",
                options={"batch_size": batch_size, "steps": STEPS, "tensorboard": name == "with"},
            )
            for name in ("without", "with")
        ]
        try:
            without, having = interleave(processes, rounds=options.rounds)
        finally:
            for process in processes:
                process.close()
        ratio = compare(without, having)
        rows.append(
            {
                "batch_size": batch_size,
                "steps_an_epoch": STEPS,
                "rounds": options.rounds,
                "without": spread(without),
                "with": spread(having),
                "without_over_with": ratio,
            }
        )
        print(
            f"batch {batch_size}: without {spread(without)['median']:,.0f}, "
            f"with {spread(having)['median']:,.0f} samples/s; training without is "
            f"{ratio['median']:.3f} times as fast ({ratio['low']:.3f} to {ratio['high']:.3f}), "
            f"n={options.rounds}"
        )
    write(
        "tensorboard_cost.json",
        {
            "unit": "samples/s",
            "machine": machine(),
            "versions": processes[0].versions,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
