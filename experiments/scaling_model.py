"""The cost of a step by the formulas of docs/scaling.md; writes that page's tables.

    python experiments/scaling_model.py

Compares the formulas with `experiments/results/all_reduce.json`, which was measured, and computes
the efficiency of 8 to 1,024 GPUs from published figures of links and of GPUs, each named below.
Nothing in the second table was measured. Takes a second on anything. With `--check` it writes
nothing and fails if the page differs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
MEASURED = ROOT / "experiments" / "results" / "all_reduce.json"

FORWARD_SHARE = 1 / 3
"""Of computing: the backward pass takes twice as long (Kaplan et al., arXiv:2001.08361)."""

BUCKET_BYTES, MOST_BUCKETS = 4 << 20, 32
"""As in tfgpu/engine/all_reduce.py."""

# NVIDIA/nccl, src/graph/tuning.cc (commit 01afd20), in seconds: the start of a ring, a step of a
# ring over NVLink and over the network with the protocol Simple, a step of a tree over the network
# with the protocol LL128, and the part of the bandwidth that a tree reaches.
START, NVLINK_STEP, NETWORK_STEP, TREE_STEP, TREE_SHARE = 8.4e-6, 3.4e-6, 9.6e-6, 8.5e-6, 0.9


@dataclass(frozen=True)
class System:
    """Nodes of GPUs.

    Attributes:
        name: For the table.
        gpus: Of a node.
        within: Bytes a second of each GPU to the others of its node, in one direction.
        between: Bytes a second of each GPU to other nodes.
    """

    name: str
    gpus: int
    within: float
    between: float


@dataclass(frozen=True)
class Model:
    """What a GPU computes in a step.

    Attributes:
        name: For the table.
        parameters: Their gradients are float32.
        seconds: Of computing one step on one GPU.
    """

    name: str
    parameters: float
    seconds: float


# NVIDIA DGX A100 (data sheet): NVLink 3, 600 GB/s of both directions; 8 adapters of 200 Gb/s, HDR
# InfiniBand. NVIDIA DGX H100 (data sheet): NVLink 4, 900 GB/s; 8 of 400 Gb/s, NDR InfiniBand.
# 100 GbE (IEEE 802.3ba): 100 Gb/s, here one adapter for the 8 GPUs of a node. 10 GbE (802.3ae).
A100 = System("A100, NVLink 3, 8 x HDR InfiniBand", 8, 300e9, 25e9)
A100_100 = System("A100, NVLink 3, one 100 GbE", 8, 300e9, 12.5e9 / 8)
H100 = System("H100, NVLink 4, 8 x NDR InfiniBand", 8, 450e9, 50e9)
H100_100 = System("H100, NVLink 4, one 100 GbE", 8, 450e9, 12.5e9 / 8)
ETHERNET_10 = System("A100, a node each, 10 GbE", 1, math.inf, 1.25e9)

# NVIDIA/DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5/README.md: 2,375
# images/s on one A100 40GB, mixed precision and XLA, batch 256.
RESNET50 = Model("ResNet-50, 256 images a GPU", 25.6e6, 256 / 2375)
# 6 operations a parameter and token (Kaplan et al.); 989.4 TFLOP/s of dense bfloat16 (NVIDIA H100
# data sheet), of which NVIDIA/Megatron-LM's README reports 41 % for its smallest model. That a GPU
# takes 16,384 tokens a step is assumed.
BILLION = Model("10^9 parameters, 16,384 tokens a GPU", 1e9, 6 * 1e9 * 16384 / (0.41 * 989.4e12))

TABLE = [
    (RESNET50, A100),
    (RESNET50, A100_100),
    (RESNET50, ETHERNET_10),
    (BILLION, H100),
    (BILLION, H100_100),
]
COUNTS = [8, 16, 32, 64, 128, 256, 512, 1024]


def ring(size: float, *, replicas: int, latency: float, bandwidth: float) -> float:
    """Seconds of a ring all-reduce: 2 (N - 1) steps, of size / N bytes each.

    Args:
        size: Bytes.
        replicas: In the ring.
        latency: Of a step, in seconds.
        bandwidth: In bytes a second.

    The source is P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters
    of workstations", J. Parallel Distrib. Comput. 69 (2009).
    """
    steps = 2 * (replicas - 1)
    return steps * latency + steps / replicas * size / bandwidth


def hierarchical(size: float, system: System, gpus: int) -> float:
    """Seconds of an all-reduce over nodes: within each, between them, within each.

    Each GPU sums a part of the bytes of its node, and then the same part with the same GPU of the
    other nodes: in a ring, or a tree where that is faster, as NCCL chooses.
    """
    within = min(gpus, system.gpus)
    nodes = gpus // within
    seconds = START + ring(size, replicas=within, latency=NVLINK_STEP, bandwidth=system.within)
    if nodes > 1:
        part, link = size / within, system.between
        steps = 2 * math.ceil(math.log2(nodes))
        seconds += min(
            ring(part, replicas=nodes, latency=NETWORK_STEP, bandwidth=link),
            steps * TREE_STEP + 2 * part / (TREE_SHARE * link),
        )
    return seconds


def buckets(size: float) -> list[float]:
    """The bytes of the buckets of a step."""
    limit = max(BUCKET_BYTES, size / MOST_BUCKETS)
    count = math.ceil(size / limit)
    return [size / count] * count


def one_after_the_other(compute: float, exchanges: Sequence[float]) -> float:
    """Seconds of a step that sums when all is computed, as with XLA."""
    return compute + sum(exchanges)


def overlapped(compute: float, exchanges: Sequence[float]) -> float:
    """Seconds of a step whose buckets are ready one by one through the backward pass.

    Sums are taken to cost the computation nothing. One bucket travels at a time.
    """
    end = forward = FORWARD_SHARE * compute
    for number, exchange in enumerate(exchanges, 1):
        ready = forward + (compute - forward) * number / len(exchanges)
        end = max(end, ready) + exchange
    return end


def computed() -> str:
    """The table of what was computed for many GPUs."""
    lines = [
        f"| computed | {' | '.join(f'{count:,}' for count in COUNTS)} |",
        f"| --- | {' | '.join('---' for _ in COUNTS)} |",
    ]
    for model, system in TABLE:
        cells = []
        for count in COUNTS:
            exchanges = [hierarchical(b, system, count) for b in buckets(4 * model.parameters)]
            times = [way(model.seconds, exchanges) for way in (one_after_the_other, overlapped)]
            cells.append(" / ".join(f"{model.seconds / time:.0%}" for time in times))
        lines.append(f"| {model.name}; {system.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured() -> str:
    """The table of measured steps beside what the formulas say."""
    found = json.loads(MEASURED.read_text())
    lines = [
        "| link | network | buckets | computing | one after the other | overlapped | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for link, of_link in found.items():
        if not isinstance(of_link, dict) or "steps" not in of_link:
            continue
        for network, of_network in of_link["steps"].items():
            compute = statistics.median(of_network["compute_seconds"])
            for layout, step in of_network.items():
                if layout not in ("4", "one"):
                    continue
                exchanges = [
                    ring(
                        size,
                        replicas=2,
                        latency=of_link["latency_seconds"],
                        bandwidth=of_link["bytes_per_second"],
                    )
                    for size in step["bucket_bytes"]
                ]
                said = "1 Gbit/s" if link == "1000" else link
                ways = [one_after_the_other, overlapped]
                shown = [compute, *(way(compute, exchanges) for way in ways), step["median"]]
                lines.append(
                    f"| {said} | {network} | {len(exchanges)} | "
                    f"{' | '.join(f'{1e3 * seconds:.1f} ms' for seconds in shown)} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Writes the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = PAGE.read_text()
    for name, table in {"measured": measured(), "computed": computed()}.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, mark, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{table}\n{mark}{after}"
    if options.check:
        if text != PAGE.read_text():
            sys.exit("docs/scaling.md is not what experiments/scaling_model.py writes; run it")
        return
    PAGE.write_text(text)
    print(measured(), computed(), sep="\n\n")


if __name__ == "__main__":
    main()
