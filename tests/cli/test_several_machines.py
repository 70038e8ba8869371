"""What TF_CONFIG means to a command that takes this machine alone."""

import os

import pytest

from tfgpu.cli import several_machines
from tfgpu.cli.console import Console
from tfgpu.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("value", "said"), [("", False), (" ", False), ("{bad", True), ('{"cluster": {}}', True)]
)
def test_other_strategies_take_it_away_and_say_so(monkeypatch, capsys, value, said):
    monkeypatch.setenv("TF_CONFIG", value)
    console = Console(progress="plain")
    with several_machines.joined(TrainSettings(), console=console) as members:
        assert members.alone
        assert "TF_CONFIG" not in os.environ
    assert ("TF_CONFIG is not used: --strategy=mirrored" in capsys.readouterr().out) == said
