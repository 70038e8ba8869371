"""docs/evidence.md from `experiments/results/evidence.json`; no TensorFlow here."""

from __future__ import annotations

from typing import Any

from evidence_rows import FAILS, HOLDS, UNKNOWN

CLAIMS: dict[str, tuple[str, str]] = {
    "device": (
        "A GPU trains faster than the CPU",
        "The same graph, without XLA, and streaming input, on the first GPU and on all cores.",
    ),
    "batch": (
        "Samples are computed in parallel",
        "A step of `lenet` on a batch that lies on the device, by the size of the batch.",
    ),
    "graph": (
        "Graphs, XLA and several steps for each call make training faster",
        "Steps of `lenet` operation by operation from Python, as a graph, compiled by XLA, and "
        "several for each call.",
    ),
    "precision": (
        "Lower precision is faster",
        "Training in TF32, bfloat16 and float16 (Keras' mixed policies) beside float32 proper: of "
        "small steps, where calls count, and of large ones, where arithmetic does.",
    ),
    "replicas": (
        "Replicas train faster than one",
        "Virtual replicas share one device: they show what replicas cost, and not what more "
        "devices would gain.",
    ),
    "all_reduce": (
        "Exchanging gradients costs at most a tenth of a step",
        "The same replicas and steps; those that are compared with keep their gradients to "
        "themselves (and learn nothing useful).",
    ),
    "overlap": (
        "Reading overlaps with computing",
        "Input alone, computation alone, both together: (input + computation - both) / the shorter "
        "one. 1 is all of it, 0 is one after the other.",
    ),
    "compression": (
        "Compressed files are smaller and faster, and as accurate",
        "LiteRT files of `tfgpu export` over the whole test split.",
    ),
    "latency": (
        "One image is classified within a frame of 33 ms",
        "From pixels to probabilities, one image a call, warm, all cores; up to 100 calls a round.",
    ),
    "portability": (
        "The same file computes the same elsewhere",
        "One model over the whole test split, beside TensorFlow on the CPU.",
    ),
    "energy": (
        "What an image costs",
        "Training as above. A million images cost their hours times the price of an hour; energy "
        "is that of the whole part, idling included.",
    ),
}
"""The statement, and how it is measured, by name."""

_HEAD = """# Evidence

What is said of GPUs, and of a stack such as this one, measured claim by claim, with one thing
changed at a time. `python experiments/evidence.py` writes this page from
`experiments/results/evidence.json`, which has every single measurement.

What is compared is alive at the same time and takes turns; a ratio is between neighbours.
Compilation and the first pass are excluded. A figure is the median of n, and in brackets an
interval that holds the true median with 95 % confidence, whatever the distribution (by order
statistics). A claim

- **holds** when the whole interval is on its side of the bound;
- **does not hold here** when all of it is on the other side;
- **cannot be shown here** in every other case, for the reason that is given.

"Faster" asks for {faster} times, since two processes that run the same differ by as much.

"""
_NAMES = {"gpu": "On a GPU", "cpu": "On a CPU"}


def page(record: dict[str, Any]) -> str:
    """The page of what was found, as Markdown."""
    from evidence_rows import FASTER

    parts = [_HEAD.format(faster=FASTER)]
    for kind in ("gpu", "cpu"):
        found = record["devices"].get(kind)
        if found:
            parts.append(_device(kind, found))
    return "".join(parts).rstrip() + "\n"


def pictures(kind: str, found: dict[str, Any]) -> dict[str, str]:
    """The pictures of a device: what they show, by the claim under which they stand."""
    shown = {}
    if any(row.get("curve") for row in _rows(found, "batch")):
        shown["batch"] = "Rate of a training step by the size of its batch"
    if any(row["unit"] == "ms" and row["n"] for row in _rows(found, "latency")):
        shown["latency"] = "Latency of one image, beside the 33 ms of a frame"
    if any(ratios_of(found)):
        shown["ratios"] = "Ratios of training speed, with their intervals"
    return shown


def ratios_of(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of all claims about training whose unit is a ratio of speed, with their claims."""
    return [
        (name, row)
        for name, claim in found.items()
        for row in claim["rows"]
        if row["unit"] == "times as fast" and row["n"] and row["low"] is not None
    ]


def _rows(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return list(found[name]["rows"]) if name in found else []


def _device(kind: str, found: dict[str, Any]) -> str:
    lines = [f"## {_NAMES[kind]}", ""]
    lines += [
        "| claim | holds | does not hold here | cannot be shown here |",
        "| --- | --- | --- | --- |",
    ]
    for name, claim in found.items():
        counts = [
            sum(r["verdict"] == word for r in claim["rows"]) for word in (HOLDS, FAILS, UNKNOWN)
        ]
        cells = " | ".join(str(count or "") for count in counts)
        lines.append(f"| [{CLAIMS[name][0]}](#{_anchor(kind, name)}) | {cells} |")
    lines += ["", "The numbers are of rows in the tables below.", ""]
    lines += _beside(found)
    shown = pictures(kind, found)
    if "ratios" in shown:
        lines += [f"![{shown['ratios']}](evidence_{kind}_ratios.png)", ""]
    for name, claim in found.items():
        lines += [f"### {_title(kind, name)}", "", CLAIMS[name][1], ""]
        if name in shown:
            lines += [f"![{shown[name]}](evidence_{kind}_{name}.png)", ""]
        lines += ["| what | measured | n | claimed | verdict |", "| --- | --- | --- | --- | --- |"]
        lines += [_line(row) for row in claim["rows"]]
        lines += ["", _measured_on(claim), ""]
    return "\n".join(lines) + "\n"


def _beside(found: dict[str, Any]) -> list[str]:
    """Says of the device's claims that other work ran beside them, where it did."""
    loads = [(max(c["load"]), int(c["cpu"].split()[-2])) for c in found.values() if c["load"][0]]
    # What is measured makes a load of its own, of about the cores.
    busy = [(load, cores) for load, cores in loads if load > 2 * cores + 1]
    if not busy:
        return []
    load, cores = max(busy)
    return [
        f"**Other work ran beside {len(busy)} of the {len(found)} claims** (load of up to "
        f"{load:.0f} on {cores} cores): intervals are wide, and what needs several cores at once "
        "looks worse than it is.",
        "",
    ]


def _title(kind: str, name: str) -> str:
    return f"{CLAIMS[name][0]} ({'GPU' if kind == 'gpu' else 'CPU'})"


def _anchor(kind: str, name: str) -> str:
    kept = "".join(c for c in _title(kind, name).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _line(row: dict[str, Any]) -> str:
    word = row["verdict"]
    shown = {HOLDS: "holds", FAILS: "**does not hold here**", UNKNOWN: "cannot be shown here"}
    verdict = shown.get(word, "")
    if row["reason"]:
        verdict += f": {row['reason']}"
    claimed = "" if row["side"] is None else f"{row['side']} {number(row['bound'])}"
    cells = (row["what"], _figure(row), str(row["n"] or ""), claimed, verdict)
    return "| " + " | ".join(cell.replace("|", "/").replace("<", "&lt;") for cell in cells) + " |"


def told(row: dict[str, Any]) -> str:
    """A row in one line, for the terminal."""
    said = f"{row['what']}: {_figure(row) or row['reason']}"
    return said if row["side"] is None else f"{said}, claimed {row['side']} {number(row['bound'])}"


def _figure(row: dict[str, Any]) -> str:
    if row["median"] is None:
        return ""
    text = number(row["median"])
    if row["low"] is not None and row["low"] != row["high"]:
        text += f" ({number(row['low'])} to {number(row['high'])})"
    text = f"{text} {row['unit']}".rstrip()
    extra = []
    if "rate" in row:
        extra.append(f"{number(row['rate'])} and {number(row['base_rate'])} {row['rate_unit']}")
    if "bytes" in row:
        extra.append(f"{row['bytes']:,} and {row['base_bytes']:,} bytes")
    if "accuracy" in row:
        extra.append(f"{row['accuracy']:.4f} and {row['base_accuracy']:.4f}")
    if "on" in row:
        extra.append(f"on {row['on']}, {row['calls']} calls a round")
    if row.get("versions"):
        extra.append(", ".join(f"{name} {version}" for name, version in row["versions"].items()))
    return f"{text}: {'; '.join(extra)}" if extra else text


def number(value: float) -> str:
    """A figure with three digits that count."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size and size < 0.01:
        return f"{value:.1e}"
    return f"{value:.3g}"


def _measured_on(claim: dict[str, Any]) -> str:
    versions = claim["versions"]
    driver = f", driver {claim['driver']}" if claim["driver"] else ""
    host = "" if claim["cpu"].startswith(claim["hardware"].split(",")[0]) else f"; {claim['cpu']}"
    before, after = claim["load"]
    load = "" if before is None else f"; load {before:.1f} before, {after:.1f} after"
    git = claim["git"]
    revision = f", revision {git['revision'][:8]}" if git else ""
    return (
        f"*{claim['hardware']}{driver}{host}; Python {versions['python']}, TensorFlow "
        f"{versions['tensorflow']}, Keras {versions['keras']}{revision}; {claim['time'][:16]}Z; "
        f"{claim['seconds']:.0f} s{load}.*"
    )
