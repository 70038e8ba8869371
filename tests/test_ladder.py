"""experiments/ladder.py: the page of what the recipes reach."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import ladder  # noqa: E402


def test_the_page_in_the_repository_is_that_of_the_results():
    written = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert written == ladder.page(), "run experiments/ladder.py"


def test_the_files_that_it_names_are_there():
    named = set(re.findall(r"`(?:experiments/)?(\w+\.py)`", ladder.page()))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / "experiments" / name).is_file()] == []


def test_what_has_no_results_is_not_shown(tmp_path):
    page = ladder.page(tmp_path)
    assert "experiment=" not in page and "Other tasks" not in page


def test_a_rung_says_mean_deviation_and_n(tmp_path):
    entry = {
        "command": "python -m tfgpu.train --experiment=experiments/cifar10.py",
        "machine": {"cores": 2, "cpu": "a CPU", "date": "2026-01-01"},
        "dataset": {"name": "cifar10"},
        "median": {"train_seconds": 12.34, "process_seconds": 20.0},
        "runs": [{"test_accuracy": a, "test_accuracy_of_views": a + 0.02} for a in (0.6, 0.7)],
        **{"model": "lenet", "parameters": 62006, "training_flops_per_image": 3.9e6, "epochs": 6},
        "views": "mirror",
    }
    (tmp_path / "figures.json").write_text(json.dumps({"recipes": {"cifar10": entry}}))
    page = ladder.page(tmp_path)
    assert "| 62,006 | 3.9 M | 6 | 0.6500 ± 0.0707, n=2 | 12.3 s | 20.0 s | 2 cores of" in page
    assert "0.6700 ± 0.0707, n=2, over 2 views of each image" in page
    assert "JPEG" in page
