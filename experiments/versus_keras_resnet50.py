"""tfgpu against stock `keras.Model.fit` on ResNet-50, on one and on two virtual devices.

    python experiments/versus_keras_resnet50.py

`keras.applications.ResNet50` on 64x64 images, batch 32, SGD with momentum, float32. Both run the
same kernels: stock Keras too is given the environment that tfgpu sets up. The two virtual devices
share the machine's processor. Writes `experiments/results/versus_keras_resnet50.json`; takes 10
minutes on two cores. See `versus.py` for how it is measured.
"""

from __future__ import annotations

from versus import TrainingProcess, arguments, compare, interleave, machine, spread, write

BATCH = 32


def main() -> None:
    """Runs the comparison."""
    options = arguments(__doc__.splitlines()[0], "versus_keras_resnet50.json").parse_args()
    rows = []
    versions = {}
    print(f"{'devices':>8}{'Keras':>8}{'tfgpu':>8}  images/s; tfgpu over Keras, n={options.rounds}")
    for devices in (1, 2):
        processes = [
            TrainingProcess(
                model,
                "resnet50",
                options={"model": model, "devices": devices, "batch_size": BATCH},
            )
            for model in ("keras", "tfgpu")
        ]
        try:
            stock, ours = interleave(processes, rounds=options.rounds)
        finally:
            for process in processes:
                process.close()
        versions |= {process.name: process.versions for process in processes}
        row = {
            "batch_size": BATCH,
            "devices": devices,
            "rounds": options.rounds,
            "keras": spread(stock),
            "tfgpu": spread(ours),
            "ratio": compare(ours, stock),
        }
        rows.append(row)
        ratio = row["ratio"]
        print(
            f"{devices:>8}{row['keras']['median']:>8.1f}{row['tfgpu']['median']:>8.1f}"
            f"  {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
            flush=True,
        )
    write(
        options.output,
        {"unit": "images/s", "machine": machine(), "versions": versions, "rows": rows},
    )


if __name__ == "__main__":
    main()
