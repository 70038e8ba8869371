"""tfgpu against stock `keras.Model.fit`: throughput on one and on two virtual devices.

    python experiments/versus_keras.py

Stock Keras runs in TensorFlow's default environment, tfgpu in the one it sets up. That default
turns oneDNN on for processors with AVX-512 VNNI or newer instructions alone; what the others get
is measured beside it, with TF_ENABLE_ONEDNN_OPTS=0. The two virtual devices share the machine's
processor, so two are at best about as fast as one. Writes
`experiments/results/versus_keras.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

from versus import TrainingProcess, arguments, compare, interleave, machine, spread, write


def main() -> None:
    """Runs the comparison."""
    options = arguments(__doc__.splitlines()[0], "versus_keras.json").parse_args()
    rows = []
    versions = {}
    print(
        f"{'batch':>6}{'devices':>8}{'Keras':>10}{'no oneDNN':>10}{'tfgpu':>10}"
        f"  tfgpu over Keras, over Keras without oneDNN, n={options.rounds}"
    )
    for batch_size in map(int, options.batch_sizes.split(",")):
        processes = [
            TrainingProcess(
                kind,
                kind,
                options={"batch_size": batch_size, "devices": devices},
                environment=environment,
            )
            for devices in (1, 2)
            for kind, environment in (
                ("keras", None),
                ("keras", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
                ("tfgpu", None),
            )
        ]
        try:
            rates = interleave(processes, rounds=options.rounds)
        finally:
            for process in processes:
                process.close()
        versions |= {process.name: process.versions for process in processes}
        for devices in (1, 2):
            stock, without, ours = rates[3 * devices - 3 : 3 * devices]
            row = {
                "batch_size": batch_size,
                "devices": devices,
                "rounds": options.rounds,
                "keras": spread(stock),
                "keras_without_onednn": spread(without),
                "tfgpu": spread(ours),
                "ratio": compare(ours, stock),
                "ratio_without_onednn": compare(ours, without),
            }
            if devices == 2:
                row["two_devices_over_one"] = compare(ours, rates[2])
            rows.append(row)
            print(
                f"{batch_size:>6}{devices:>8}{row['keras']['median']:>10,.0f}"
                f"{row['keras_without_onednn']['median']:>10,.0f}"
                f"{row['tfgpu']['median']:>10,.0f}"
                + "".join(
                    f"  {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                    for ratio in (row["ratio"], row["ratio_without_onednn"])
                )
                + (
                    f"  two devices over one: {row['two_devices_over_one']['median']:.2f}"
                    if devices == 2
                    else ""
                ),
                flush=True,
            )
    write(
        options.output,
        {"unit": "samples/s", "machine": machine(), "versions": versions, "rows": rows},
    )


if __name__ == "__main__":
    main()
