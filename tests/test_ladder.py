"""experiments/ladder.py: the page of what the recipes reach."""

import json
import re
import sys
from pathlib import Path

import pytest

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


def page_of_the_tasks():
    return " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "said, file, path, digits",
    [
        ("`dice` is {}", "masks", "sets.nuclei.median.test_dice", 3),
        ("lesion in 27 it is {}", "masks", "sets.lesions.median.test_dice", 2),
        ("`map_50` {},", "detection", "shapes.median.map_50", 3),
        ("`map` {} (medians", "detection", "shapes.median.map", 3),
        ("RMSE {} at 80/20", "recommendations", "goals.rating.models.factors.median.test_rmse", 3),
        (
            "NDCG@10 {} at",
            "recommendations",
            "goals.retrieval.models.two_tower.median.test_ndcg_at_10",
            3,
        ),
        ("(accuracy {},", "tables", "tables.breast_cancer.tfgpu.median.accuracy", 3),
        ("ROC curve {};", "tables", "tables.breast_cancer.tfgpu.median.auc", 3),
        ("(R² {};", "tables", "tables.housing.tfgpu.median.r2", 3),
        ("gradient boosting {})", "tables", "tables.housing.scikit_learn.median.r2", 3),
        ("mean average precision of {} and", "labels", "tfgpu.median.map", 3),
        ("macro F1 of {};", "labels", "tfgpu.median.macro_f1", 3),
        ("an accuracy of {} on spoken", "sounds", "digits-convolution.median.test_accuracy", 3),
    ],
)
def test_the_page_of_the_tasks_has_the_measured_figures(said, file, path, digits):
    found = json.loads((ROOT / "experiments" / "results" / f"{file}.json").read_text())
    for name in path.split("."):
        found = found[name]
    page = page_of_the_tasks()
    assert said.format(f"{found:.{digits}f}") in page


def test_the_page_of_the_tasks_has_the_figures_of_the_trees():
    trees = json.loads((ROOT / "experiments" / "results" / "detection.json").read_text())["trees"]
    medians = [each["median"]["map_50"] for name, each in trees.items() if name != "machine"]
    *most, last = sorted((f"{value:.2f}" for value in medians), reverse=True)
    page = page_of_the_tasks()
    assert f"`map_50` on a fourth is {', '.join(most)} or {last}, by which" in page


def test_the_results_have_the_figures_beside_pytorch():
    file = ROOT / "experiments" / "results" / "airbench94_pytorch.json"
    measured = json.loads(file.read_text())
    curve, same = measured["same_curve"], measured["same_numbers"][0]
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    within, steps = curve["steps_within_two_standard_errors"], curve["steps"]
    assert f"the losses of {within} of the {steps} steps are within two standard errors" in page
    furthest = max(map(abs, same["differences_of_losses"]))
    assert f"the first {same['steps']} steps are the same to {furthest:.5f}" in page
    assert curve["width"] == same["width"] == 0.5 and "at half its width" in page


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
