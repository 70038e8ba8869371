"""tfgpu against stock `keras.Model.fit`: throughput on one and on two virtual devices.

    python experiments/versus_keras.py

Stock Keras runs in TensorFlow's default environment, tfgpu in the one it sets up. The two
virtual devices share the machine's processor, so two are at best as fast as one. Writes
`experiments/results/versus_keras.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

from versus import Contestant, arguments, compare, machine, race, spread, write


def main() -> None:
    """Runs the comparison."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    rows = []
    versions = {}
    print(f"{'batch':>6}{'devices':>8}{'Keras':>10}{'tfgpu':>10}  ratio, n={options.rounds}")
    for batch_size in map(int, options.batch_sizes.split(",")):
        contestants = [
            Contestant(kind, kind, options={"batch_size": batch_size, "devices": devices})
            for devices in (1, 2)
            for kind in ("keras", "tfgpu")
        ]
        try:
            rates = race(contestants, rounds=options.rounds)
        finally:
            for contestant in contestants:
                contestant.close()
        versions |= {contestant.name: contestant.versions for contestant in contestants}
        for devices in (1, 2):
            stock, ours = rates[2 * devices - 2], rates[2 * devices - 1]
            row = {
                "batch_size": batch_size,
                "devices": devices,
                "rounds": options.rounds,
                "keras": spread(stock),
                "tfgpu": spread(ours),
                "ratio": compare(ours, stock),
            }
            if devices == 2:
                row["two_devices_over_one"] = compare(ours, rates[1])
            rows.append(row)
            ratio = row["ratio"]
            print(
                f"{batch_size:>6}{devices:>8}{row['keras']['median']:>10,.0f}"
                f"{row['tfgpu']['median']:>10,.0f}  "
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                + (
                    f"  two devices over one: {row['two_devices_over_one']['median']:.2f}"
                    if devices == 2
                    else ""
                ),
                flush=True,
            )
    write(
        "versus_keras.json",
        {"unit": "samples/s", "machine": machine(), "versions": versions, "rows": rows},
    )


if __name__ == "__main__":
    main()
