"""What only a GPU can show: the checks of experiments/gpu_report.py, speed too, a test a group."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import gpu_report  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if gpu_report.gpu() is None:
        pytest.skip("there is no GPU that the driver knows of")


@pytest.mark.parametrize("group", gpu_report.EVERY)
def test_group(group):
    result = gpu_report.run_group(group, limit=300)
    assert result["error"] is None, result["log"]
    assert result["checks"]
    failed = [check for check in result["checks"] if check["passed"] is False]
    assert not failed
