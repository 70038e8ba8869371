"""tfgpu against eager PyTorch: training throughput of the small CNN.

    python experiments/versus_pytorch.py --pytorch_python=PATH

PyTorch lives in an environment of its own, whose interpreter the flag names. Writes
`experiments/results/versus_pytorch.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

import sys

from versus import TrainingProcess, arguments, compare, interleave, machine, spread, write


def main() -> None:
    """Runs the comparison."""
    parser = arguments(__doc__.splitlines()[0], "versus_pytorch.json")
    parser.add_argument("--pytorch_python", default=sys.executable)
    parser.set_defaults(batch_sizes="4,128,512")
    options = parser.parse_args()
    rows = []
    versions = {}
    print(f"{'batch':>6}{'PyTorch':>10}{'tfgpu':>10}  ratio (middle half), n={options.rounds}")
    for batch_size in map(int, options.batch_sizes.split(",")):
        ours = TrainingProcess(
            "tfgpu",
            "tfgpu",
            options={
                "batch_size": batch_size,
                "steps_per_execution": 64 if batch_size < 32 else 16,
            },
        )
        theirs = TrainingProcess(
            "PyTorch", "pytorch", options={"batch_size": batch_size}, python=options.pytorch_python
        )
        try:
            our_rates, their_rates = interleave([ours, theirs], rounds=options.rounds)
        finally:
            ours.close()
            theirs.close()
        versions |= {"tfgpu": ours.versions, "pytorch": theirs.versions}
        ratio = compare(our_rates, their_rates)
        rows.append(
            {
                "batch_size": batch_size,
                "rounds": options.rounds,
                "pytorch": spread(their_rates),
                "tfgpu": spread(our_rates),
                "ratio": ratio,
            }
        )
        print(
            f"{batch_size:>6}{spread(their_rates)['median']:>10,.0f}"
            f"{spread(our_rates)['median']:>10,.0f}  "
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            flush=True,
        )
    write(
        options.output,
        {"unit": "samples/s", "machine": machine(), "versions": versions, "rows": rows},
    )


if __name__ == "__main__":
    main()
