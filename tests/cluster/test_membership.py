"""What processes exchange while they train, and what they hear of each other's end."""

import random
import threading
import time

import pytest
from threads_as_workers import each, joined

from tfgpu.cluster import membership
from tfgpu.cluster.membership import alone
from tfgpu.errors import DataError, Interrupted, LostWorkerError


def test_values_of_all_reach_all():
    with joined(3) as members:
        found = each(3, lambda rank: members[rank].exchange("rank", rank * 10))
    assert found == [[0, 10, 20]] * 3


def test_bytes_of_all_reach_the_chief():
    with joined(3) as members:
        found = each(3, lambda rank: members[rank].gather("part", rank, bytes([rank]) * 3))
    assert [message.body for message in found[0]] == [b"\0\0\0", b"\1\1\1", b"\2\2\2"]
    assert found[1:] == [None, None]


def test_the_chiefs_bytes_reach_all():
    with joined(2) as members:
        found = each(2, lambda rank: members[rank].broadcast("x", None, b"ab" * (1 - rank)).body)
    assert found == [b"ab", b"ab"]


def test_a_process_alone_exchanges_with_itself():
    assert alone().exchange("x", 1) == [1]
    assert alone().broadcast("x", {"a": (1,)}).fields["value"] == {"a": [1]}


def test_alone_a_signal_stops_at_the_next_boundary():
    member = alone()
    assert member.boundary() is None
    member.request_stop(15)
    assert member.boundary() == 15


@pytest.mark.parametrize("seed", range(6))
def test_all_stop_at_the_same_boundary_whoever_asks(seed):
    """Steps are in lockstep, as a collective makes them, and each thread dawdles at random."""
    size = 3
    draw = random.Random(seed)
    at = draw.randrange(1, 200)
    who = draw.randrange(size)
    step = threading.Barrier(size)

    def work(rank, member):
        pauses = random.Random(seed * 10 + rank)
        for number in range(5000):
            if pauses.random() < 0.1:
                time.sleep(0.001)
            step.wait(20)
            if rank == who and number == at:
                member.request_stop(15)
            if (signum := member.boundary()) is not None:
                return number, signum
        return None

    with joined(size) as members:
        for member in members:
            member.begin()
        found = each(size, lambda rank: work(rank, members[rank]))
    assert found[0] is not None and found == [found[0]] * size
    assert found[0][1] == 15 and found[0][0] >= at


def test_two_who_ask_at_once_stop_once():
    step = threading.Barrier(2)

    def work(rank, member):
        for number in range(5000):
            step.wait(20)
            if number == 20:
                member.request_stop(2 if rank else 15)
            if (signum := member.boundary()) is not None:
                return number, signum
        return None

    with joined(2) as members:
        found = each(2, lambda rank: work(rank, members[rank]))
    assert found[0] is not None and found[0] == found[1]


def test_a_process_whose_connection_closes_is_lost(monkeypatch):
    monkeypatch.setattr(membership.Membership, "_see_to_the_end", lambda self: None)
    with joined(3) as members:
        members[2].peers[0]._socket.shutdown(2)
        for rank in (0, 1):
            with pytest.raises(LostWorkerError, match=r"worker 2 .* was lost"):
                members[rank].wait_for_failure(5)


def test_a_silent_process_is_lost(monkeypatch):
    monkeypatch.setattr(membership.Membership, "_see_to_the_end", lambda self: None)
    monkeypatch.setattr(membership, "LOST_AFTER", 1.5)
    with joined(2) as members:
        for member in members:
            member.begin()
        monkeypatch.setattr(members[1], "try_to_send", lambda *a, **k: None)
        with pytest.raises(LostWorkerError, match="silent for 2 s"):
            members[0].wait_for_failure(8)


@pytest.mark.parametrize(
    ("code", "line", "kind", "message"),
    [
        (3, "a file is damaged", DataError, "worker 1 .*: a file is damaged"),
        (143, "stopped by SIGTERM", Interrupted, "worker 1 .* was stopped by SIGTERM"),
        (1, "ValueError: x", LostWorkerError, r"ended with exit code 1 \(ValueError: x\)"),
    ],
)
def test_how_one_process_ends_the_others_hear(monkeypatch, code, line, kind, message):
    monkeypatch.setattr(membership.Membership, "_see_to_the_end", lambda self: None)
    with joined(3) as members:
        members[1].close(code, line)
        for rank in (0, 2):
            with pytest.raises(kind, match=message):
                members[rank].exchange("never", None)


def test_what_the_others_say_is_kept_by_the_chief_also_before_it_has_a_place():
    with joined(2) as members:
        members[1].say("early")
        time.sleep(0.3)
        kept = []
        members[0].log_to(lambda rank, text: kept.append((rank, text)))
        members[1].say("late")
        each(2, lambda rank: members[rank].exchange("x", None))
    assert kept == [(1, "early"), (1, "late")]


def test_processes_that_finish_together_are_not_lost():
    with joined(3) as members:
        for member in members:
            member.begin()
        assert each(3, lambda rank: members[rank].finish("end", rank)) == [[0, 1, 2]] * 3
        members[1].close(0)
        members[0].check()
        members[2].check()
