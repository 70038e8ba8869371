"""What the doctors of several machines find out together."""

import json
import socket

import pytest
from threads_as_workers import each, free_ports

from tfgpu.cluster import identity
from tfgpu.doctor import meeting


def _meet(ports, rank, **options):
    addresses = [f"127.0.0.1:{port}" for port in ports]
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    variables = {"TF_CONFIG": json.dumps(config), "TFGPU_CLUSTER_TOKEN": "x"}
    options = {"timeout": 10, "say": lambda line: None} | options
    return meeting.check_together("multi_worker_mirrored", variables, **options)


def _by_item(found):
    return {finding.item: (finding.status, finding.value) for finding in found}


def test_machines_that_fit_find_nothing_wrong():
    ports = free_ports(2)
    first, second = each(2, lambda rank: _meet(ports, rank))
    assert {finding.status for finding in [*first, *second]} == {"ok"}
    assert [finding.item for finding in first] == ["meeting", "versions", "clocks", "ways"]
    assert _by_item(first)["ways"] == ("ok", "each reaches each other, 2 ways")


def test_a_machine_that_nobody_answers_from_is_a_warning():
    [finding] = _meet(free_ports(2), 0, timeout=0.3)
    assert finding.status == "warning" and "worker 1" in finding.value
    assert "on all machines at once" in finding.remedy


def test_other_versions_are_a_problem(monkeypatch):
    made = iter([{"Keras": "3.1"}, {"Keras": "3.2"}])
    monkeypatch.setattr(identity, "versions", lambda: next(made))
    ports = free_ports(2)
    for found in each(2, lambda rank: _meet(ports, rank)):
        status, value = _by_item(found)["versions"]
        assert status == "problem" and "Keras is" in value


def test_a_way_that_is_closed_is_named_by_its_ends(monkeypatch):
    ports = free_ports(2)

    def closed(address):
        return "No route to host" if address.endswith(str(ports[1])) else None

    monkeypatch.setattr(meeting, "_why_not_reached", closed)
    first, _ = each(2, lambda rank: _meet(ports, rank))
    [bad] = [finding for finding in first if finding.status == "problem"]
    assert bad.item == f"from worker 0 (127.0.0.1:{ports[0]})"
    assert bad.value == f"worker 1 (127.0.0.1:{ports[1]}) is not reached: No route to host"


def test_clocks_that_differ_are_a_warning(monkeypatch):
    made = iter([1000.0, 1010.0])
    monkeypatch.setattr(meeting.time, "time", lambda: next(made))
    ports = free_ports(2)
    first, _ = each(2, lambda rank: _meet(ports, rank))
    status, value = _by_item(first)["clocks"]
    assert status == "warning" and value.startswith("10.000 s apart")


@pytest.mark.parametrize("strategy", ["mirrored", "one_device"])
def test_on_one_machine_nobody_is_met(strategy):
    assert meeting.check_together(strategy, {}, timeout=1, say=print) == []


def test_a_port_that_is_taken_is_a_problem():
    ports = free_ports(2)
    with socket.socket() as stranger:
        stranger.bind(("", ports[0]))
        stranger.listen()
        [finding] = _meet(ports, 0)
    assert finding.status == "problem" and f"port {ports[0]}" in finding.value
