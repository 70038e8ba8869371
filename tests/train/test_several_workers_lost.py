"""Workers that are lost, that stand still, and that do not fit together; each in processes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from resumed_runs import Job, argv_of
from several_workers import Workers, free_addresses, outcome

pytestmark = pytest.mark.slow

SETTINGS = {"devices": None, "epochs": "12"}
FLAGS = argv_of(SETTINGS)
LONG = argv_of({"devices": None, "epochs": "100000", "early_stopping": None})


@pytest.fixture(scope="module")
def folder(place):
    folder = place / "lost"
    folder.mkdir(exist_ok=True)
    return folder


def test_twenty_kills_at_random_leave_the_bits_as_they_were(place, folder):
    Job(place, folder / "whole", SETTINGS | {"virtual_devices": "2"}).finish()
    path, draw, kills = folder / "killed", random.Random(20), 0
    while kills < 20:
        # Who waits at the rendezvous for a worker that was killed there does so for 8 s.
        workers = Workers(place, path, [*FLAGS, "--join_timeout=8"])
        # From the rendezvous to long after the first step.
        time.sleep(draw.uniform(0.5, 16.0))
        victim = draw.randrange(2)
        if workers.processes[victim].poll() is None:
            workers.processes[victim].kill()
            kills += 1
        ended = workers.ends(timeout=60)
        other = ended[1 - victim]
        if ended[victim].code == 0:
            assert other.code == 0, ended
            if kills < 20:
                shutil.rmtree(path)  # It came to its end: begin anew.
            continue
        assert other.code in (0, 6), ended
        assert other.seconds < 15, ended
    Workers(place, path, FLAGS).finish()
    assert outcome(path) == outcome(folder / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_stopped_counts_as_lost_within_15_seconds(place, folder, rank):
    workers = Workers(place, folder / f"stands{rank}", LONG)
    workers.wait_until("epoch      2/")
    workers.processes[rank].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert workers.processes[1 - rank].wait(timeout=20) == 6
        assert time.monotonic() - began < 15
    finally:
        workers.processes[rank].send_signal(signal.SIGCONT)
    ended = workers.ends(timeout=30)
    assert f"worker {rank} " in ended[1 - rank].err and "was lost" in ended[1 - rank].err
    assert len(ended[1 - rank].err.splitlines()) == 1
    # The one that stood still finds the others gone.
    assert ended[rank].code == 6 and len(ended[rank].err.splitlines()) == 1


def test_data_that_only_one_worker_cannot_read_end_both(place, folder):
    images = folder / "images"
    shutil.copytree(place / "images", images)
    flags = [*argv_of({"devices": None, "dataset": f"folder:{images}", "input": "streaming"})]
    workers = Workers(
        place, folder / "damaged", flags, changes={1: {"env": {"TFGPU_TEST_NOTHING": "1"}}}
    )
    workers.finish()
    victim = next(images.rglob("*.png"))
    victim.write_bytes(b"no picture")
    ended = Workers(place, folder / "damaged2", flags).ends()
    assert {end.code for end in ended.values()} <= {3, 6}, ended
    assert any(end.code == 3 for end in ended.values())
    assert all(len(end.err.splitlines()) == 1 for end in ended.values()), ended


def _taken():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


def test_workers_with_other_settings_do_not_start(place, folder):
    changes = {1: {"flags": [*FLAGS, "--seed=1", "--learning_rate=0.1"]}}
    ended = Workers(place, folder / "other", FLAGS, changes=changes).ends(timeout=40)
    for end in ended.values():
        assert end.code == 2, ended
        [line] = end.err.splitlines()
        assert "--learning_rate is 0.05 at worker 0" in line and "--seed is 0 at worker 0" in line
    assert not (folder / "other").exists()


def test_workers_with_other_data_do_not_start(place, folder):
    other = folder / "fewer"
    shutil.copytree(place / "images", other / "images")
    next((other / "images" / "train").rglob("*.png")).unlink()
    shutil.copy(place / "resume_models.py", other)
    addresses = free_addresses(2)
    environment = {"TFGPU_CLUSTER_TOKEN": "x"}
    first = Workers(
        place,
        folder / "other_data",
        FLAGS,
        addresses=addresses,
        changes={0: {"env": environment}, 1: None},
    )
    second = Workers(
        other,
        other / "run",
        FLAGS,
        addresses=addresses,
        changes={0: None, 1: {"env": environment}},
    )
    ended = {**first.ends(timeout=60), **second.ends(timeout=60)}
    for end in ended.values():
        assert end.code == 2, ended
        [line] = end.err.splitlines()
        assert "the workers have other data" in line
    assert not (folder / "other_data").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_port_that_is_taken_is_said_by_both(place, folder, rank):
    listener, address = _taken()
    with listener:
        addresses = free_addresses(2)
        addresses[rank] = address
        ended = Workers(place, folder / "taken", FLAGS, addresses=addresses).ends(timeout=40)
    for end in ended.values():
        assert end.code == 2, ended
        [line] = end.err.splitlines()
        assert address in line


def test_two_workers_with_one_index_do_not_start(place, folder):
    changes = {1: {"index": 0}}
    ended = Workers(place, folder / "twice", FLAGS, changes=changes).ends(timeout=40)
    for end in ended.values():
        assert end.code == 2, ended
        assert "is there twice" in end.err


def test_a_worker_that_never_comes_is_named_and_ctrl_c_ends_the_wait(place, folder):
    flags = [*FLAGS, "--join_timeout=9"]
    workers = Workers(place, folder / "alone", flags, changes={1: None})
    [end] = workers.ends(timeout=40).values()
    assert end.code == 6 and end.seconds < 20
    assert f"worker 1 ({workers.addresses[1]}) did not come within 9 s" in end.err
    assert f"waiting for worker 1 ({workers.addresses[1]}), 5 of 9 s" in end.out
    for number in (signal.SIGINT, signal.SIGTERM):
        workers = Workers(place, folder / "alone", FLAGS, changes={1: None})
        time.sleep(2)
        workers.processes[0].send_signal(number)
        [end] = workers.ends(timeout=10).values()
        assert end.code == 128 + number and end.seconds < 2


def test_a_bad_port_in_tf_config_is_refused_at_once(place, folder):
    addresses = ["127.0.0.1:99999", "127.0.0.1:2222"]
    ended = Workers(place, folder / "bad", FLAGS, addresses=addresses).ends(timeout=10)
    for end in ended.values():
        assert end.code == 2 and "port 99999" in end.err


def test_more_workers_than_examples_are_refused(place, folder):
    tiny = folder / "tiny"
    for kind in ("a", "b"):
        (tiny / kind).mkdir(parents=True)
        shutil.copy(next((place / "images").rglob("*.png")), tiny / kind)
    flags = argv_of(
        {"devices": None, "dataset": f"folder:{tiny}", "validation_fraction": "0",
         "early_stopping": None}
    )  # fmt: skip
    ended = Workers(place, folder / "many", flags, count=3).ends(timeout=60)
    for end in ended.values():
        assert end.code in (2, 3), ended
        assert len(end.err.splitlines()) == 1


def _can_make_namespaces():
    done = (
        subprocess.run(["ip", "netns", "add", "tfgpu-test-probe"], capture_output=True, check=False)
        if shutil.which("ip")
        else None
    )
    if done is None or done.returncode:
        return False
    subprocess.run(["ip", "netns", "delete", "tfgpu-test-probe"], check=False)
    return True


@pytest.mark.skipif(not _can_make_namespaces(), reason="needs the right to make network namespaces")
def test_a_link_that_is_cut_ends_both_within_15_seconds(place, folder):
    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    names = [f"tfgpu-{os.getpid()}-{rank}" for rank in (0, 1)]
    links = [f"tf{os.getpid() % 100000}{rank}" for rank in "ab"]
    addresses = [f"10.77.0.{rank + 1}:2222" for rank in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for rank, (name, link) in enumerate(zip(names, links, strict=True)):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        workers = Workers(
            place,
            folder / "cut",
            LONG,
            addresses=addresses,
            before={rank: ["ip", "netns", "exec", names[rank]] for rank in (0, 1)},
        )
        workers.wait_until("epoch      2/")
        ip("-n", names[1], "link", "set", links[1], "down")
        ended = workers.ends(timeout=40)
        for rank, end in ended.items():
            assert end.code == 6 and end.seconds < 15, ended
            [line] = end.err.splitlines()
            assert f"worker {1 - rank} ({addresses[1 - rank]}) was lost" in line
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_the_world_may_shrink_and_the_run_says_so(place, folder):
    path = folder / "shrinks"
    workers = Workers(place, path, FLAGS)
    workers.wait_until("epoch  2/")
    workers.processes[0].send_signal(signal.SIGTERM)
    workers.ends()
    [one] = Workers(place, path, FLAGS, count=1).finish().values()
    assert "replicas: 2 there, 1 now" in one.out
    result = json.loads((path / "result.json").read_text())
    assert result["status"] == "finished" and result["replicas"] == 1


def test_evaluate_and_predict_say_over_two_workers_what_they_say_in_one(place, folder):
    path = folder / "evaluated"
    Job(place, path, {"epochs": "1"}).finish()
    alone = {}
    for command, flags in {"evaluate": ["--json"], "predict": ["--format=csv", "images"]}.items():
        argv = [sys.executable, "-m", f"tfgpu.{command}", f"--run_dir={path}", *flags]
        done = subprocess.run(
            [*argv, *(["--batch_size=8"])], cwd=place, capture_output=True, text=True, check=True
        )
        alone[command] = done.stdout
        # The second worker has no run: the chief sends it.
        workers = Workers(place, path, [*flags, "--batch_size=8"], command=command)
        ended = workers.ends(timeout=120)
        assert [ended[rank].code for rank in (0, 1)] == [0, 0], ended
        if command == "predict":
            assert ended[0].out == alone[command] and ended[1].out == ""
            continue
        one, two = json.loads(alone[command]), json.loads(ended[0].out)
        assert two.pop("replicas") == 2 and one.pop("replicas") == 1
        assert two.pop("strategy") == "multi_worker_mirrored" and one.pop("strategy")
        assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)
        assert set(two) == set(one)
        assert two["accuracy"] == one["accuracy"]
        assert two["confusion_matrix"] == one["confusion_matrix"]
