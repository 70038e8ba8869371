"""TF_CONFIG, read and checked."""

import json
import os

import pytest

from tfgpu.cluster.tf_config import read_cluster
from tfgpu.errors import RequestError
from tfgpu.machine import runtime


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is not set"),
        ("{", "is not JSON"),
        ("[]", "lacks"),
        ('{"cluster": {}}', "lacks"),
        ('{"cluster": {}, "task": {}}', "names no worker"),
        ('{"cluster": {"worker": "a:1"}, "task": {}}', "not a list"),
        ('{"cluster": {"worker": ["a"]}, "task": {}}', "host:port"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {}}', "twice"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "'ps'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "index None"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "index 1"),
    ],
)
def test_a_bad_tf_config_is_told_with_a_good_one(monkeypatch, value, message):
    if value is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(RequestError, match=message) as caught:
        runtime.start(strategy="multi_worker_mirrored")
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "task", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "worker", "index": 0}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "chief", "index": 0}, True),
    ],
)
def test_the_chief_of_a_cluster(monkeypatch, cluster, task, chief):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    found = read_cluster(os.environ)
    assert found.is_chief is chief
    assert found.num_workers == 2
