"""experiments/evidence.py: the rule of its verdicts, its page, what it asks for, a real claim."""

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import evidence  # noqa: E402
import evidence_page  # noqa: E402
import evidence_rows as rows  # noqa: E402
import evidence_training as training  # noqa: E402

STORED = ROOT / "experiments" / "results" / "evidence.json"


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rank"),
    # Ranks of the sign test's interval of at least 95 %, as tables of it have them.
    [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8)],
)
def test_the_interval_is_that_of_the_sign_test(count, rank):
    values = [float(each) for each in range(1, count + 1)]
    assert rows.interval(values[::-1]) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_measurements_have_no_interval(count):
    assert rows.interval([1.0] * count) is None


def test_the_interval_holds_the_median_of_skewed_measurements_as_often_as_it_says():
    import numpy as np

    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = rows.interval(list(random.lognormal(size=9)))
        held += low <= 1.0 <= high
    assert held >= 0.95 * 2000


@pytest.mark.parametrize(
    ("low", "high", "side", "found"),
    [
        (1.03, 1.2, "at least", rows.HOLDS),
        (1.02, 1.2, "at least", rows.UNKNOWN),
        (0.5, 1.03, "at least", rows.UNKNOWN),
        (0.5, 1.02, "at least", rows.FAILS),
        (0.5, 1.03, "at most", rows.HOLDS),
        (0.5, 1.04, "at most", rows.UNKNOWN),
        (1.03, 1.2, "at most", rows.UNKNOWN),
        (1.04, 1.2, "at most", rows.FAILS),
        (math.nan, 1.2, "at least", rows.UNKNOWN),
        (None, None, "at least", rows.UNKNOWN),
    ],
)
def test_the_verdict_is_that_of_the_whole_interval(low, high, side, found):
    assert rows.verdict(low, high, side=side, bound=1.03) == found


def test_ratios_are_of_the_same_rounds():
    # The machine becomes ten times as slow: every ratio stays 2.
    base = [100.0, 10.0] * 4
    found = rows.ratios("a over b", [2 * each for each in base], base, rate_unit="images/s")
    assert (found["low"], found["median"], found["high"]) == (2, 2, 2)
    assert found["verdict"] == rows.HOLDS and found["n"] == 8


def test_a_figure_without_a_claim_has_no_verdict():
    assert rows.row("seconds", [1.0] * 9, unit="s")["verdict"] == rows.FIGURE


# ---- the page ------------------------------------------------------------------------------------


def stored():
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_the_page_in_the_repository_is_that_of_the_stored_measurements():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert page == evidence_page.page(stored()), "run experiments/evidence.py --render"


def test_the_pictures_of_the_page_are_those_that_are_stored():
    expected = {
        f"evidence_{kind}_{name}.png"
        for kind, found in stored()["devices"].items()
        for name in evidence_page.pictures(kind, found)
    }
    assert {path.name for path in (ROOT / "docs").glob("evidence_*.png")} == expected


def test_the_stored_verdicts_follow_from_the_stored_measurements():
    judged = 0
    for found in stored()["devices"].values():
        for claim in found.values():
            for each in claim["rows"]:
                if each["side"] is None:
                    continue
                if len(each["values"]) > 1:
                    low, high = rows.interval(each["values"]) or (None, None)
                    assert (each["low"], each["high"]) == (low, high), each["what"]
                found_again = rows.verdict(
                    each["low"], each["high"], side=each["side"], bound=each["bound"]
                )
                assert each["verdict"] == found_again, each["what"]
                judged += 1
    assert judged > 20


def record(*of_claim):
    claim = {
        "name": "graph",
        "rows": list(of_claim),
        "error": "",
        "seconds": 12.0,
        "load": [0.5, 1.5],
        "time": "2026-01-01T00:00:00+00:00",
        "hardware": "a GPU, compute capability 9.0",
        "cpu": "a CPU, 16 cores",
        "driver": "580.1",
        "versions": {"python": "3.12", "tensorflow": "2.21.0", "keras": "3.15.1"},
        "git": None,
    }
    return {"devices": {"gpu": {"graph": claim}}}


def test_each_row_says_figure_interval_n_claim_and_verdict():
    faster = rows.ratios("XLA over graph", [2.0] * 9, [1.0] * 9, rate_unit="images/s")
    slower = rows.row("share", [0.1] * 9, unit="", side="at least", bound=0.5)
    absent = rows.missing("TF32 | float32", "a CPU has\nno TF32")
    page = evidence_page.page(record(faster, slower, absent))
    assert (
        "| XLA over graph | 2 times as fast: 2 and 1 images/s | 9 | at least 1.03 | holds |" in page
    )
    assert "| share | 0.1 | 9 | at least 0.5 | **does not hold here** |" in page
    assert "| TF32 / float32 |  |  |  | cannot be shown here: a CPU has no TF32 |" in page
    assert "a GPU, compute capability 9.0, driver 580.1; a CPU, 16 cores; Python 3.12" in page
    assert "| 1 | 1 | 1 |" in page, "the counts of the claim"


def test_the_page_says_when_other_work_ran_beside_it():
    found = record(rows.row("share", [0.1] * 9, unit=""))
    assert "Other work" not in evidence_page.page(found)
    found["devices"]["gpu"]["graph"]["load"] = [0.5, 40.0]
    said = "**Other work ran beside 1 of the 1 claims** (load of up to 40 on 16 cores)"
    assert said in evidence_page.page(found)


def test_a_claim_that_fails_says_why_and_stops_nothing():
    def broken():
        raise RuntimeError("no\nsuch thing")

    environment = {
        "devices": [{"description": "a CPU"}],
        "cpu": {"model": "a CPU", "cores": 2},
        **{"nvidia_driver": None, "versions": {}, "git": None},
    }
    claim = evidence.measure("graph", broken, environment)
    assert claim["error"] == "RuntimeError: no such thing"
    assert [each["verdict"] for each in claim["rows"]] == [rows.UNKNOWN]


def test_a_claim_replaces_its_last_measurement_and_leaves_the_others(tmp_path):
    path = tmp_path / "evidence.json"
    found = evidence.read(path)
    for name, seconds in (("graph", 1.0), ("batch", 2.0), ("graph", math.nan)):
        claim = {"name": name, "rows": [], "seconds": seconds}
        evidence.keep(found, "cpu", claim, path)
    kept = json.loads(path.read_text())["devices"]["cpu"]
    assert list(kept) == ["batch", "graph"], "in the order of the page"
    assert kept["graph"]["seconds"] is None, "strict JSON has no NaN"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--claims=graph,grpah"], "--claims=grpah: the claims are device, batch"),
        (["--rounds=5"], "--rounds=5: an interval needs 6"),
        (["--price_per_hour=0"], "--price_per_hour=0.0: must be positive"),
        (["--run_dir=/no/where"], "--run_dir=/no/where: no finished run there"),
    ],
)
def test_a_request_that_cannot_be_done_is_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stop:
        evidence.parse(flags)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


# ---- what is asked of the processes --------------------------------------------------------------


class Answering:
    """Stands for a trial: its requests are written down, and it trains at a rate of its own."""

    started: list["Answering"] = []

    def __init__(self, kind, config, environment=None):
        assert kind == "trial"
        self.config, self.environment, self.asked = config, environment, []
        Answering.started.append(self)

    def read(self):
        return "ready"

    def ask(self, request):
        self.asked.append(request["kind"])
        if request["kind"] in ("build", "run_eagerly", "allow_tensor_float_32"):
            return None
        if request["kind"] == "leave_out_exchange":
            assert self.config.strategy == "mirrored"
            return None
        if request["kind"] == "train":
            return 100.0 * len(Answering.started) + len(self.asked)
        return {"data_alone": 0.01, "compute_alone": 0.02}[request["kind"]]

    def close(self):
        self.asked.append("close")


CLAIMS_OF_TRAINING = (
    training.device_over_cpu,
    training.samples_in_parallel,
    training.graph_and_xla,
    training.mixed_precision,
    training.replicas,
    training.all_reduce,
    training.overlap,
    lambda place: training.energy_and_cost(place, price=None),
)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs a claim against processes that stand for trials; returns its rows and them."""
    monkeypatch.setattr(training.process, "start", Answering)
    monkeypatch.setattr(training, "make_jpegs", lambda folder, **_: folder)

    def run(claim, gpus):
        Answering.started = []
        place = training.Place(gpus=gpus, rounds=7, seconds=0.1, limit=9.0, folder=tmp_path)
        return claim(place), Answering.started

    return run


@pytest.mark.parametrize("gpus", [[], ["GPU:0"], ["GPU:0", "GPU:1"]], ids=["cpu", "gpu", "gpus"])
def test_every_claim_asks_for_what_there_is(asked, gpus):
    for claim in CLAIMS_OF_TRAINING:
        found, processes = asked(claim, gpus)
        assert found
        for each in processes:
            # Every setting is one that `tfgpu bench` takes: it was checked when it was made.
            assert each.asked[-1] == "close" and each.asked.count("build") == 1
            named = each.config.devices.split(",")
            assert named == ["all"] or set(named) <= {"CPU:0", *gpus}
            assert bool(gpus) == (each.environment == {})
        measured = [each for each in found if each["verdict"] != rows.UNKNOWN]
        assert all(each["n"] == 7 for each in measured)
        if claim is not training.device_over_cpu:
            assert measured


def test_the_device_is_compared_where_there_is_a_gpu_alone(asked):
    found, processes = asked(training.device_over_cpu, [])
    assert not processes
    assert {each["reason"] for each in found} == {"TensorFlow shows no GPU on this machine"}
    found, processes = asked(training.device_over_cpu, ["GPU:0"])
    assert [each.config.devices for each in processes] == ["CPU:0", "GPU:0"] * 2
    assert [each["what"] for each in found] == [
        "lenet, batch 128: GPU over CPU",
        "resnet50, batch 128: GPU over CPU",
    ]


def test_tf32_is_measured_on_a_gpu_against_float32_without_it(asked):
    _, (plain, tf32, *_) = asked(training.mixed_precision, ["GPU:0"])
    assert "allow_tensor_float_32" in plain.asked
    assert "allow_tensor_float_32" not in tf32.asked
    found, _ = asked(training.mixed_precision, [])
    assert "a CPU has no TF32" in {each["reason"] for each in found}


def test_a_process_that_fails_leaves_the_others(asked, monkeypatch):
    def ask(self, request):
        if self.config.precision == "mixed_float16":
            raise training.MeasurementFailed("out of memory")
        return original(self, request)

    original = Answering.ask
    monkeypatch.setattr(Answering, "ask", ask)
    found, _ = asked(training.mixed_precision, [])
    by_name = {each["what"]: each for each in found}
    assert by_name["lenet, batch 128: float16 over float32"]["reason"] == "out of memory"
    assert by_name["lenet, batch 128: bfloat16 over float32"]["n"] == 7


def test_the_jpeg_files_are_in_folders_of_classes(tmp_path):
    from PIL import Image

    training.make_jpegs(tmp_path, count=30, side=24)
    files = sorted((tmp_path / "train").glob("*/*.jpg"))
    assert len(files) == 30 and len(list((tmp_path / "test").glob("*/*.jpg"))) == 40
    assert {path.parent.name for path in files} == set("0123456789")
    with Image.open(files[0]) as picture:
        assert (picture.size, picture.mode) == ((24, 24), "RGB")


def test_the_share_that_is_hidden_is_that_of_the_shorter(asked):
    found, (process,) = asked(training.overlap, [])
    # 10 ms of input and 20 ms of computation; a step of 64 examples at 100 a second and a few.
    step = found[3]["median"] / 1e3
    assert found[0]["median"] == pytest.approx((0.01 + 0.02 - step) / 0.01)
    assert process.config.dataset.startswith("folder:")


# ---- energy --------------------------------------------------------------------------------------


class Counting(contextlib.nullcontext):
    """Stands for the monitor of the hardware: two seconds, in which a part takes 500 J."""

    def __init__(self, *, interval, gpus):
        super().__init__()
        self.gpus = gpus

    def summary(self):
        missing = [
            {"what": "processor and memory", "why": "psutil is not installed"},
            {"what": "energy of the processor", "why": "no RAPL"},
        ]
        energy = [{"of": "GPU 0", "joules": 500.0, "by": "its counter"}] if self.gpus else []
        return {"seconds": 2.0, "energy": energy, "missing": missing}


def test_energy_and_cost_are_those_of_an_image(asked, monkeypatch):
    monkeypatch.setattr(training, "HardwareMonitor", Counting)
    found, _ = asked(lambda place: training.energy_and_cost(place, price=3.0), ["GPU:0"])
    by_name = {each["what"].removeprefix("resnet50, batch 128: "): each for each in found}
    hours = by_name["device time of a million images, float32"]["values"]
    rates = [1e6 / 3600 / each for each in hours]
    assert by_name["energy of GPU 0, float32"]["values"] == pytest.approx(
        [500 / (2 * rate) for rate in rates]
    )
    costs = by_name["cost of a million images, float32"]["values"]
    assert costs == pytest.approx([3 * each for each in hours])
    assert by_name["energy of GPU 0, float16 over float32"]["n"] == 7
    assert by_name["energy of the processor"]["reason"] == "no RAPL"
    assert "processor and memory" not in by_name


def test_a_machine_without_meters_says_so(asked, monkeypatch):
    monkeypatch.setattr(training, "HardwareMonitor", Counting)
    found, _ = asked(lambda place: training.energy_and_cost(place, price=None), [])
    by_name = {each["what"].removeprefix("resnet20, batch 32: "): each for each in found}
    assert by_name["energy of the processor"]["verdict"] == rows.UNKNOWN
    assert not any(name.startswith("cost") for name in by_name)


# ---- for real ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_claim_is_measured_and_written(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "evidence.py"), f"--out={tmp_path}"]
    flags = ["--claims=batch,energy", "--rounds=6", "--seconds=0.05", "--price_per_hour=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    (kind,) = json.loads((tmp_path / "experiments/results/evidence.json").read_text())["devices"]
    found = json.loads((tmp_path / "experiments/results/evidence.json").read_text())["devices"]
    batch, energy = found[kind]["batch"], found[kind]["energy"]
    curve = batch["rows"][0]["curve"]
    assert list(map(int, curve)) == sorted(map(int, curve))
    # Of 1 and 64 images; on every machine that is a great deal more.
    assert curve["64"]["median"] > curve["1"]["median"]
    whats = {each["what"].partition(": ")[2]: each for each in energy["rows"]}
    hours = whats["device time of a million images, float32"]
    cost = whats["cost of a million images, float32"]
    assert cost["median"] == pytest.approx(2 * hours["median"])
    assert (tmp_path / "docs" / f"evidence_{kind}_batch.png").stat().st_size > 5_000
    assert "Samples are computed in parallel" in (tmp_path / "docs" / "evidence.md").read_text()
