"""Processes meet, or all of them hear why they do not."""

import contextlib
import os
import socket
import threading
import time

import pytest
from threads_as_workers import cluster_of, each, free_ports, join

from tfgpu.cluster import rendezvous
from tfgpu.cluster.identity import differences
from tfgpu.errors import LostWorkerError, RequestError


def _errors(count, work):
    results = each(count, work)
    assert all(isinstance(result, Exception) for result in results), results
    return results


def test_all_that_are_named_meet():
    ports = free_ports(3)
    members = each(3, lambda rank: join(cluster_of(ports, rank)))
    assert [(m.rank, m.size, m.sharing_cores) for m in members] == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]
    each(3, lambda rank: members[rank].close(0))


def test_the_ports_are_free_for_tensorflow_afterwards():
    ports = free_ports(2)
    members = each(2, lambda rank: join(cluster_of(ports, rank)))
    for port in ports:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
            server.listen()
    each(2, lambda rank: members[rank].close(0))


def test_a_setting_in_which_they_differ_is_named_in_each():
    ports = free_ports(2)
    errors = _errors(
        2, lambda rank: join(cluster_of(ports, rank), identity={"setting": {"seed": rank}})
    )
    for error in errors:
        assert isinstance(error, RequestError)
        assert "--seed is 0 at worker 0" in str(error) and "1 at worker 1" in str(error)


def test_who_is_missing_is_said_until_the_time_is_over(monkeypatch):
    monkeypatch.setattr(rendezvous, "SAY_EVERY", 0.1)
    ports, lines = free_ports(3), [[], [], []]

    def work(rank):
        return join(cluster_of(ports, rank), timeout=1, say=lines[rank].append)

    errors = _errors(2, work)  # The third never comes.
    for rank, error in enumerate(errors):
        assert isinstance(error, LostWorkerError)
        assert f"worker 2 (127.0.0.1:{ports[2]}) did not come within 1 s" in str(error)
        assert any("waiting for worker 2" in line for line in lines[rank])


def test_a_chief_that_never_comes_is_missed(monkeypatch):
    monkeypatch.setattr(rendezvous, "SAY_EVERY", 0.1)
    lines = []
    ports = free_ports(2)
    with pytest.raises(LostWorkerError, match=r"worker 0 .* did not come within 1 s"):
        join(cluster_of(ports, 1), timeout=1, say=lines.append)
    assert any("waiting for worker 0" in line for line in lines)


@pytest.mark.parametrize("taken", [0, 1])
def test_a_port_that_is_taken_is_told_to_all(taken):
    ports = free_ports(2)
    with socket.socket() as stranger:
        stranger.bind(("", ports[taken]))
        stranger.listen()
        errors = _errors(2, lambda rank: join(cluster_of(ports, rank)))
    for error in errors:
        assert isinstance(error, RequestError)
        assert str(ports[taken]) in str(error)
        assert "end what listens there" in str(error)


def test_two_with_one_index_are_told_to_all():
    ports = free_ports(3)
    entered = threading.Barrier(3)

    def work(number):
        entered.wait()
        rank = min(number, 1)
        if number == 2:
            # Its port is the other's, so another address stands for another host.
            with contextlib.suppress(RequestError):
                return join(cluster_of([ports[0], ports[2], ports[2]][:2], 1))
            return None
        return join(cluster_of(ports[:2] + [ports[2]], rank))

    results = each(3, work, timeout=40)
    problems = [r for r in results if isinstance(r, RequestError)]
    assert any("is there twice" in str(p) or "differ" in str(p) for p in problems), results


def test_two_chiefs_of_the_same_workers_both_end():
    ports = free_ports(2)

    def work(number):
        time.sleep(0.5 * number)
        return join(cluster_of(ports, 0))

    for error in _errors(2, work):
        assert isinstance(error, RequestError)
        assert f"worker 0 (127.0.0.1:{ports[0]}) is there twice" in str(error)


def test_the_chief_of_other_workers_stops_nobody():
    ports = free_ports(3)
    clusters = [cluster_of(ports[:2], 0), cluster_of(ports[:2], 1), cluster_of(ports[::2], 0)]

    def work(number):
        # The stranger comes after the chief, and before the chief's other worker.
        time.sleep((0, 1.0, 0.5)[number])
        return join(clusters[number])

    first, second, stranger = each(3, work)
    assert (first.rank, second.rank) == (0, 1)
    assert "the chief of other workers answers at this address" in str(stranger)
    each(2, lambda rank: (first, second)[rank].close(0))


def test_another_token_is_turned_away_and_stops_nobody_else():
    ports, lines = free_ports(2), []

    def work(rank):
        if rank == 0:
            return join(cluster_of(ports, 0), say=lines.append)
        with pytest.raises(RequestError, match="another token"):
            join(cluster_of(ports, 1), token=b"guess")
        return join(cluster_of(ports, 1))

    members = each(2, work)
    assert [member.rank for member in members] == [0, 1]
    assert lines == ["somebody at 127.0.0.1 came with another token and was turned away"]
    each(2, lambda rank: members[rank].close(0))


def test_a_scanner_of_ports_stops_nobody():
    ports = free_ports(2)

    def work(rank):
        if rank == 1:
            for _ in range(100):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", ports[0]), timeout=1) as scanner,
                ):
                    scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    break
                time.sleep(0.05)
        return join(cluster_of(ports, rank))

    members = each(2, work)
    assert [member.size for member in members] == [2, 2]
    each(2, lambda rank: members[rank].close(0))


def test_a_process_that_died_while_it_waited_may_come_again():
    ports = free_ports(3)
    results = []
    chief = threading.Thread(
        target=lambda: results.append(each(1, lambda _: join(cluster_of(ports, 0)))[0])
    )
    chief.start()
    from tfgpu.cluster import wire

    for _ in range(100):
        try:
            connection, _ = wire.connect(("127.0.0.1", ports[0]), token=b"secret")
            break
        except OSError:
            time.sleep(0.05)
    connection.send("join", rank=1, size=3, identity={}, host="", problem=None)
    time.sleep(0.5)
    connection.close()
    time.sleep(0.5)
    others = each(2, lambda i: join(cluster_of(ports, i + 1)))
    chief.join(20)
    members = [results[0], *others]
    assert [member.rank for member in members] == [0, 1, 2]
    each(3, lambda rank: members[rank].close(0))


def test_a_token_comes_from_the_environment_or_from_a_file_of_its_owner(tmp_path):
    path = tmp_path / "token"
    path.write_text("from the file\n")
    os.chmod(path, 0o600)
    assert rendezvous.read_token({}) == b""
    assert rendezvous.read_token({rendezvous.TOKEN: "given"}) == b"given"
    assert rendezvous.read_token({rendezvous.TOKEN_FILE: str(path)}) == b"from the file"


@pytest.mark.parametrize(
    ("mode", "text", "message"),
    [(0o644, "x", "may be read by others"), (0o600, "", "is empty"), (None, "", "cannot be read")],
)
def test_a_token_file_that_is_none_is_refused(tmp_path, mode, text, message):
    path = tmp_path / "token"
    if mode is not None:
        path.write_text(text)
        os.chmod(path, mode)
    with pytest.raises(RequestError, match=message):
        rendezvous.read_token({rendezvous.TOKEN_FILE: str(path)})


def test_equal_processes_do_not_differ():
    same = {"setting": {"seed": 0, "image_size": (8, 8)}}
    assert differences([same, {"setting": {"seed": 0, "image_size": [8, 8]}}], ["a", "b"]) == ""
