"""Workers of this machine are processes with a place, and end with the launch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import launches
import pytest

from tfgpu.launch import local, supervise, worker
from tfgpu.launch.command import Command

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity and PR_SET_PDEATHSIG")


@pytest.fixture
def started(monkeypatch):
    """Starts two workers that run a program of ours in the place of tfgpu."""
    made = []

    def start(program, *, gpus=(None, None), cores=((), ())):
        monkeypatch.setattr(worker, "command_line", lambda argv: [sys.executable, "-c", program])
        made.append(local.LocalWorkers(Command("train", ()), gpus=gpus, cores=cores))
        return made[-1]

    yield start
    for workers in made:
        workers.kill()


def run(workers, **more):
    supervise.run(workers, **{"max_restarts": 0, "resume": ""} | more)


def lines(text, index):
    return [line.removeprefix(f"[{index}] ") for line in text.splitlines() if f"[{index}] " in line]


def told(capsys, workers):
    """What each worker prints as JSON."""
    run(workers)
    out = capsys.readouterr().out
    return [json.loads(lines(out, index)[0]) for index in (0, 1)]


def test_each_worker_gets_its_place_and_all_the_same_token(started, capsys):
    program = (
        "import json, os\n"
        "print(json.dumps([os.environ['TF_CONFIG'], os.environ['TFGPU_CLUSTER_TOKEN']]))"
    )
    (first, token), (second, same) = told(capsys, started(program))
    first, second = json.loads(first), json.loads(second)
    assert first["cluster"] == second["cluster"] and len(set(first["cluster"]["worker"])) == 2
    assert [first["task"], second["task"]] == [{"type": "worker", "index": i} for i in (0, 1)]
    assert token == same and len(token) == 32


@linux
def test_each_worker_keeps_to_its_cores(started, capsys):
    core = min(os.sched_getaffinity(0))
    program = "import os; print(sorted(os.sched_getaffinity(0)))"
    everywhere = sorted(os.sched_getaffinity(0))
    assert told(capsys, started(program, cores=((core,), ()))) == [[core], everywhere]


def test_each_worker_sees_its_gpus(started, capsys):
    program = "import os, json; print(json.dumps(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert told(capsys, started(program, gpus=("0,1", "2,3"))) == ["0,1", "2,3"]


def test_both_streams_are_passed_on_with_the_number_of_the_worker(started, capsys):
    program = "import sys; print('out'); sys.stderr.write('err without an end')"
    run(started(program))
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == ["[0] out", "[1] out"]
    assert sorted(said.err.splitlines()) == ["[0] err without an end", "[1] err without an end"]


def test_much_output_of_both_stays_whole_lines(started, capsys):
    run(started("for i in range(5000): print('x' * 50 + str(i))"))
    out = capsys.readouterr().out
    for index in (0, 1):
        assert lines(out, index) == ["x" * 50 + str(i) for i in range(5000)]


def test_workers_have_no_standard_input(started, capsys):
    program = "import sys; print(repr(sys.stdin.read()).replace(chr(39), chr(34)))"
    assert told(capsys, started(program)) == ["", ""]


def test_a_process_that_a_worker_leaves_behind_does_not_hold_the_launch(started):
    program = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    began = time.monotonic()
    run(started(program))
    assert time.monotonic() - began < 30


def test_a_worker_that_is_killed_is_lost_and_all_start_again(started, tmp_path, capsys):
    program = f"""
import json, os, pathlib, signal, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
starts = [pathlib.Path({str(tmp_path)!r}) / f"starts-{{i}}" for i in (0, 1)]
with open(starts[index], "a") as file:
    file.write("x")
if starts[index].read_text() == "x":
    while not starts[0].exists():
        time.sleep(0.01)
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""
    began = time.monotonic()
    run(started(program), max_restarts=1)
    assert time.monotonic() - began < 30
    assert [(tmp_path / f"starts-{i}").read_text() for i in (0, 1)] == ["xx", "xx"]
    assert "worker 1 was killed by SIGKILL" in capsys.readouterr().out


def test_a_port_that_somebody_took_in_between_is_another_one_the_next_time(started, monkeypatch):
    """A worker ends with 2 when it finds its port taken."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = [taken.getsockname()[1], *local.ports.free_ports(3)]
        monkeypatch.setattr(local.ports, "free_ports", lambda n: [ports.pop(0) for _ in range(n)])
        workers = started(
            "import json, os, socket, sys\n"
            "config = json.loads(os.environ['TF_CONFIG'])\n"
            "address = config['cluster']['worker'][config['task']['index']]\n"
            "try: socket.socket().bind(('', int(address.rpartition(':')[2])))\n"
            "except OSError: sys.exit(2)"
        )
        run(workers, start_again=workers.lost_a_port)
    assert ports == []


def test_a_port_that_is_free_is_no_excuse(started):
    workers = started("raise SystemExit(2)")
    with pytest.raises(supervise.Failure) as failed:
        run(workers, start_again=workers.lost_a_port)
    assert failed.value.exit_code == 2


def test_a_keyboard_interrupt_reaches_workers_that_ignored_it(started, capsys):
    """As in a job that a shell has started in the background: it ignores SIGINT."""
    workers = started(
        "import signal, time\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "print('1')"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert told(capsys, workers) == [1, 1]
    finally:
        signal.signal(signal.SIGINT, before)


@linux
def test_workers_end_with_a_launch_that_is_killed(tmp_path):
    program = (
        "import subprocess, sys, time\n"
        "from tfgpu.launch import worker\n"
        "worker.command_line = lambda argv: [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "for _ in range(2): print(subprocess.Popen(worker.child_command_line([], ())).pid)\n"
        "sys.stdout.flush(); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=launches.environment(),
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    time.sleep(1)  # They have become what they are to be.
    assert all(map(_runs, workers))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, workers))


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_launch_trains(tmp_path):
    done = launches.launch("--workers=2", "--", *launches.TRAIN, "--epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["status"], result["replicas"]) == ("finished", 2)
    assert all(line.startswith(("[0] ", "[1] ", "launch: ")) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_run_that_lost_a_worker_ends_with_the_same_bits(tmp_path):
    train = ["--", *launches.TRAIN, "--epochs=6", "--checkpoint_every=10"]
    done = launches.launch("--workers=2", *train, "--run_dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    flags = ["--workers=2", "--max_restarts=1", *train, "--run_dir=killed"]
    with launches.launching(*flags, cwd=tmp_path) as process:
        launches.wait_for("epoch 3/6", tmp_path)
        os.kill(launches.workers_of(process)[-1], signal.SIGKILL)
        assert process.wait(timeout=240) == 0, (tmp_path / "said").read_text()
    assert "restart 1 of at most 1" in (tmp_path / "said").read_text()
    assert launches.weights(tmp_path / "killed") == launches.weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_launch_that_is_stopped_saves_and_can_be_continued(tmp_path, number, code):
    train = ["--", *launches.TRAIN, "--epochs=60", "--run_dir=run"]
    with launches.launching("--workers=2", *train, cwd=tmp_path) as process:
        launches.wait_for("epoch  2/60", tmp_path)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    said = (tmp_path / "said").read_text()
    assert said.splitlines()[-1].endswith("-- train " + " ".join(train[2:]))
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
