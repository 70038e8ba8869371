"""What a GPU, and the rest of such a stack, is worth here: each claim measured by itself.

    python experiments/evidence.py
    python experiments/evidence.py --claims=batch,precision
    python experiments/evidence.py --jax_python=jax/bin/python --torch_python=torch/bin/python

measures on whatever the machine has (a GPU where there is one, else the CPU), one factor at a time,
in at most 15 minutes on two cores with nothing beside it. It needs tfgpu's extras `export` and
`plots`. What it finds goes to `experiments/results/evidence.json`, and from there to
`docs/evidence.md` and its pictures; --render measures nothing and writes these alone. A claim that
is measured again replaces what was found before on that kind of device; the others stay. The rule
of the verdicts is in `evidence_rows.py`. A claim that fails does not stop the others, and exit code
1 says that one did. A claim that does not hold is no failure.

--rounds is how often everything that is compared takes its turn, --seconds how long each time.
--run_dir names a finished run whose model is exported, timed and ported; by default `lenet` is
trained on the digits. --price_per_hour is what an hour of this machine costs, in any currency;
without it costs are hours. --out is the folder of `experiments/results` and `docs`, by default the
checkout.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence_page
import evidence_serving as serving
import evidence_training as training
from evidence_rows import UNKNOWN, missing

from tfgpu.artifacts import files
from tfgpu.bench import process
from tfgpu.bench.interleaved_timing import MeasurementFailed

ROOT = Path(__file__).resolve().parent.parent


def claims(
    place: training.Place, options: argparse.Namespace
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """What measures each claim, by its name in `evidence_page.CLAIMS`."""
    model = serving.Model(place, options.run_dir)
    pythons = {
        "jax": options.jax_python or _own("jax"),
        "torch": options.torch_python or _own("torch"),
    }
    given = {name: python for name, python in pythons.items() if python}
    return {
        "device": lambda: training.device_over_cpu(place),
        "batch": lambda: training.samples_in_parallel(place),
        "graph": lambda: training.graph_and_xla(place),
        "precision": lambda: training.mixed_precision(place),
        "replicas": lambda: training.replicas(place),
        "all_reduce": lambda: training.all_reduce(place),
        "overlap": lambda: training.overlap(place),
        "compression": lambda: serving.compression(place, model),
        "latency": lambda: serving.latency(place, model),
        "portability": lambda: serving.portability(place, model, pythons=given),
        "energy": lambda: training.energy_and_cost(place, price=options.price_per_hour),
    }


def _own(module: str) -> str | None:
    """This interpreter, where it has a backend itself."""
    return sys.executable if importlib.util.find_spec(module) else None


def look() -> tuple[list[str], dict[str, Any]]:
    """The GPUs that TensorFlow shows, and what environment.json of a run would hold."""
    machine = process.start("machine", training.BenchSettings())
    try:
        machine.read()
        gpus = machine.ask({"kind": "look"})["gpus"]
        environment = machine.ask({"kind": "start", "device": gpus[0] if gpus else "CPU:0"})
    finally:
        machine.close()
    return gpus, environment


def measure(
    name: str, function: Callable[[], list[dict[str, Any]]], environment: dict[str, Any]
) -> dict[str, Any]:
    """Measures a claim; what goes wrong is in its "error"."""
    begin, load = time.perf_counter(), _load()
    error = ""
    try:
        rows = function()
    except Exception as failure:  # The other claims go on.
        error = " ".join(f"{type(failure).__name__}: {failure}".split())[:400]
        rows = [missing(evidence_page.CLAIMS[name][0], error)]
    return {
        "name": name,
        "rows": rows,
        "error": error,
        "seconds": time.perf_counter() - begin,
        "load": [load, _load()],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": environment["devices"][0]["description"],
        "cpu": f"{environment['cpu']['model']}, {environment['cpu']['cores']} cores",
        "driver": environment["nvidia_driver"],
        "versions": environment["versions"],
        "git": environment["git"],
    }


def _load() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not count."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def read(path: Path) -> dict[str, Any]:
    """What an earlier run found; empty without one."""
    if not path.exists():
        return {"devices": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def keep(record: dict[str, Any], kind: str, claim: dict[str, Any], path: Path) -> None:
    """Puts a claim into the record in the place of its last measurement, and writes the file."""
    of_device = record["devices"].setdefault(kind, {})
    of_device[claim["name"]] = claim
    record["devices"][kind] = {
        name: of_device[name] for name in evidence_page.CLAIMS if name in of_device
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, _finite(record))


def _finite(value: Any) -> Any:
    """A value as strict JSON can hold it."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(record: dict[str, Any], out: Path) -> None:
    """Writes the page and its pictures."""
    docs = out / "docs"
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "evidence.md").write_text(evidence_page.page(record), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("the pictures are not drawn without matplotlib: pip install 'tfgpu[plots]'")
        return
    import evidence_plots

    evidence_plots.draw(record, docs)
    print(f"{docs / 'evidence.md'} is written")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--claims", default=",".join(evidence_page.CLAIMS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of a comparison, about")
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--jax_python")
    parser.add_argument("--torch_python")
    parser.add_argument("--price_per_hour", type=float)
    parser.add_argument("--out", type=Path, default=ROOT)
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args(argv)
    options.claims = options.claims.split(",")
    for name in options.claims:
        if name not in evidence_page.CLAIMS:
            parser.error(f"--claims={name}: the claims are {', '.join(evidence_page.CLAIMS)}")
    if options.rounds < training.FEWEST:
        parser.error(f"--rounds={options.rounds}: an interval needs {training.FEWEST}")
    if options.seconds <= 0 or options.limit <= 0:
        parser.error("--seconds and --limit must be positive")
    if options.price_per_hour is not None and not options.price_per_hour > 0:
        parser.error(f"--price_per_hour={options.price_per_hour}: must be positive")
    if options.run_dir is not None and not (options.run_dir / "result.json").is_file():
        parser.error(f"--run_dir={options.run_dir}: no finished run there")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measures and writes; returns the exit code."""
    options = parse(argv)
    path = options.out / "experiments" / "results" / "evidence.json"
    record = read(path)
    if options.render:
        render(record, options.out)
        return 0
    begin = time.perf_counter()
    try:
        gpus, environment = look()
    except MeasurementFailed as failure:
        print(f"evidence: TensorFlow does not start: {failure}", file=sys.stderr)
        return 5
    failed = []
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        place = training.Place(
            gpus=gpus,
            rounds=options.rounds,
            seconds=options.seconds,
            limit=options.limit,
            folder=Path(folder),
        )
        functions = claims(place, options)
        for name in options.claims:
            claim = measure(name, functions[name], environment)
            keep(record, "gpu" if gpus else "cpu", claim, path)
            print(evidence_page.CLAIMS[name][0], f"({claim['seconds']:.0f} s)")
            for row in claim["rows"]:
                print(
                    f"  {row['verdict'] or 'measured':<20}  {evidence_page.told(row)}", flush=True
                )
            if claim["error"]:
                failed.append(name)
    render(record, options.out)
    rows = [
        row
        for name in options.claims
        for row in record["devices"]["gpu" if gpus else "cpu"][name]["rows"]
    ]
    unknown = sum(row["verdict"] == UNKNOWN for row in rows)
    print(f"{len(rows)} rows, {unknown} not shown, in {time.perf_counter() - begin:.0f} s")
    if failed:
        print(f"evidence: not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
