"""What sampling the hardware costs a training of `lenet`, and what a sample takes.

    python experiments/hardware_sampling_cost.py

Trains without samples, with one every 2 s (the default of `--hardware_interval`) and with 50 a
second, in processes of their own that take turns of 20 steps, and compares
neighbours. Then takes samples alone, for the processor time of one. Takes about three minutes.
Writes `experiments/results/hardware_sampling_cost.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from versus import TrainingProcess, arguments, compare, interleave, machine, spread, write

STEPS = 20
INTERVALS = {"off": None, "2 s": 2.0, "0.02 s": 0.02}
SAMPLES = 300


def main() -> None:
    """Runs the comparison."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch_sizes="512", rounds=9)
    options = parser.parse_args()
    batch_size = int(options.batch_sizes)
    settings = {"batch_size": batch_size, "steps": STEPS}
    processes = [
        TrainingProcess(name, "tfgpu", options={**settings, "hardware_interval": interval})
        for name, interval in INTERVALS.items()
    ]
    try:
        rates = dict(zip(INTERVALS, interleave(processes, rounds=options.rounds), strict=True))
    finally:
        for process in processes:
            process.close()
    rows = []
    for name in list(INTERVALS)[1:]:
        ratio = compare(rates["off"], rates[name])
        rows.append({"interval": name, "with": spread(rates[name]), "without_over_with": ratio})
        print(
            f"every {name}: training without is {ratio['median']:.3f} times as fast "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}), n={options.rounds}"
        )
    sample = of_a_sample()
    print(f"a sample takes {1e3 * sample['median']:.2f} ms of a processor, n={SAMPLES}")
    write(
        "hardware_sampling_cost.json",
        {
            "unit": "samples/s",
            "machine": machine(),
            "versions": processes[0].versions,
            "batch_size": batch_size,
            "rounds": options.rounds,
            "without": spread(rates["off"]),
            "rows": rows,
            "processor_seconds_a_sample": sample,
        },
    )


def of_a_sample() -> dict[str, Any]:
    """Processor seconds of one sample of processor and memory; its median and middle half."""
    from tfgpu.machine.hardware_monitor import HardwareMonitor

    monitor = HardwareMonitor(interval=1e6)
    monitor.start()
    spent = []
    for _ in range(SAMPLES):
        began = time.thread_time()
        monitor.sample()
        spent.append(time.thread_time() - began)
    monitor.stop()
    low, median, high = statistics.quantiles(spent, n=4)
    return {"median": median, "low": low, "high": high, "n": SAMPLES}


if __name__ == "__main__":
    main()
