"""`python -m tests.differential`: any number of random cases, by any seed.

Prints, for each case that differs, the JSON that repeats it and what differs.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from tfgpu.cli import startup

from . import cases, rules

if TYPE_CHECKING:
    from . import compare


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sequence of cases")
    parser.add_argument("--cases", type=int, default=24, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--case", help="a case as JSON, in place of drawn ones")
    parser.add_argument("--replicas", default="1,2", help="such as 1,2 (default) or 2")
    parser.add_argument("--verbose", action="store_true", help="print each case before it runs")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds after which a case ends the process"
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="stock Keras against itself, with rows permuted in place of two replicas",
    )
    parser.add_argument(
        "--fault", help="have the compared model train something else, which has to be found"
    )
    parser.add_argument(
        "--always-condition",
        action="store_true",
        help="find out of every case whether it is ill-conditioned, not only of those that differ",
    )
    parser.add_argument(
        "--count-rules", action="store_true", help="count what the rules leave out, train nothing"
    )
    return parser.parse_args(argv)


def _give_up(case: cases.Case, seconds: float) -> None:
    """Ends a process whose case hangs, in which no exception would arrive."""
    print(f"no end after {seconds:.0f} s: {case.to_json()}", flush=True)
    os._exit(3)


def _count_rules(drawn: list[cases.Case], replicas: list[int]) -> int:
    counts: collections.Counter[str] = collections.Counter()
    for case in drawn:
        for number in replicas:
            rule = rules.excluded(case, number)
            counts[rule.name if rule else "compared"] += 1
    for name, count in counts.most_common():
        print(f"{name}: {count} ({count / counts.total():.1%})")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the cases; returns 1 if any differs."""
    arguments = _parse(argv)
    replicas = [int(text) for text in arguments.replicas.split(",")]
    if arguments.case:
        drawn = [cases.Case.from_json(arguments.case)]
    else:
        indices = range(arguments.first, arguments.first + arguments.cases)
        drawn = [cases.generate(arguments.seed, index) for index in indices]
    if arguments.count_rules:
        return _count_rules(drawn, replicas)

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from . import builders, compare

    kind = None if arguments.self_test else builders.tfgpu_kind()
    strategies = {1: None}
    if max(replicas) > 1 and not arguments.self_test:
        strategies[2] = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    strategies = {number: strategies.get(number) for number in replicas}
    counts: collections.Counter[str] = collections.Counter()
    seconds = []
    try:
        for case in drawn:
            if arguments.verbose:
                print(f"case {case.index}: {case.to_json()}", flush=True)
            timer = threading.Timer(arguments.timeout, _give_up, (case, arguments.timeout))
            timer.daemon = True
            timer.start()
            began = time.perf_counter()
            try:
                comparisons = compare.check(
                    case,
                    strategies,
                    kind,
                    fault=arguments.fault,
                    always_condition=arguments.always_condition,
                )
            finally:
                timer.cancel()
                compare.forget()
            seconds.append(time.perf_counter() - began)
            for comparison in comparisons:
                counts[comparison.verdict] += 1
                shown = comparison.verdict in ("differs", "invalid")
                if shown or (arguments.verbose and comparison.differences):
                    print(_block(case, comparison), flush=True)
    except KeyboardInterrupt:
        print(f"stopped; --first={arguments.first + len(seconds)} goes on")
    print(_summary(counts, seconds))
    return 1 if counts["differs"] else 0


def _block(case: cases.Case, comparison: compare.Comparison) -> str:
    lines = [f"case {case.index}, replicas {comparison.replicas}: {comparison.verdict}"]
    lines.append(f"  --case '{case.to_json()}'")
    lines += [f"  {quantity}: {text}" for quantity, text in comparison.differences[:8]]
    if len(comparison.differences) > 8:
        lines.append(f"  and {len(comparison.differences) - 8} quantities more")
    return "\n".join(lines)


def _summary(counts: collections.Counter[str], seconds: list[float]) -> str:
    names = [rule.name for rule in rules.RULES if not rule.quantities]
    by_rule = ", ".join(f"{name} {counts[name]}" for name in names if counts[name]) or "none"
    return (
        f"{len(seconds)} cases, {counts.total()} runs: {counts['invalid']} invalid, left out "
        f"{sum(counts[name] for name in names)} ({by_rule}), {counts['ill-conditioned']} "
        f"ill-conditioned, {counts['same'] + counts['differs']} compared, {counts['differs']} "
        f"differ; {sum(seconds) / max(1, len(seconds)):.1f} s a case"
    )


if __name__ == "__main__":
    sys.exit(main())
