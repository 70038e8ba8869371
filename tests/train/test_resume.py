"""Runs of the command that are killed and started again end with the bits of one that is not.

Every process here is a real one, `python -m tfgpu.train`, and is stopped by a real signal. When
is decided by a seed and counted from something seen on the disk, such as a new checkpoint, so
that kills fall into training, writing, renaming and removing alike on any machine.
"""

import random
import signal
import sys

import pytest
from resumed_runs import CASES, Job, beside, said_command, same

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
    # TensorFlow's MirroredVariable, when Keras saves weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


@pytest.mark.slow
def test_a_run_that_is_terminated_and_killed_ends_with_the_same_bits(place, tmp_path):
    settings = CASES["one device, resident"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, err = job.stop(lambda: job.newest() >= 4, signal.SIGTERM)
        assert code == 143, err
        before = job.newest()
        assert before >= 4
        command = said_command(err)
        code, _ = job.stop(lambda: job.newest() >= before + 6, argv=command, delay=0.002)
        assert code == -signal.SIGKILL
        assert f"continuing the run in {job.path}" in job.finish(command)
    same(tmp_path / "whole", job.path)


@pytest.mark.slow
def test_two_replicas_that_stream_end_with_the_same_bits(place, tmp_path):
    settings = CASES["mirrored, streaming"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, _ = job.stop(lambda: job.newest() >= 9 and job.writes())
        assert code == -signal.SIGKILL
        job.finish()
    same(tmp_path / "whole", job.path)


@pytest.mark.slow
def test_an_average_in_mixed_precision_ends_with_the_same_bits(place, tmp_path):
    settings = CASES["float16, average"]
    job = Job(place, tmp_path / "cut", settings)
    with beside(place, tmp_path / "whole", settings):
        code, err = job.stop(lambda: job.newest() >= 14, signal.SIGINT)
        assert code == 130
        assert f"--run_dir={job.path}" in said_command(err)
        job.finish()
    same(tmp_path / "whole", job.path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_twenty_instants(place, tmp_path, case):
    chance = random.Random(case)
    settings = CASES[case] | {"epochs": "14"}
    job = Job(place, tmp_path / "cut", settings)
    whole = tmp_path / "whole"
    in_writing = 0
    with beside(place, whole, settings):
        # Before there is anything, with the directory, with the first checkpoint.
        job.stop(lambda: True, delay=chance.uniform(0, 4))
        job.stop(job.path.is_dir, delay=chance.uniform(0, 0.1))
        job.stop(lambda: job.newest() >= 0, delay=chance.uniform(0, 0.05))
        for _ in range(18):
            # Into the writing of a later checkpoint, its renaming, or the removal of an old one.
            after = job.newest() + chance.randint(1, 4)
            busy = chance.random() < 0.5

            def when(after=after, busy=busy):
                return job.newest() >= after and (not busy or job.writes())

            code, _ = job.stop(when, delay=chance.uniform(0, 0.004 if busy else 0.03))
            assert code == -signal.SIGKILL
            in_writing += job.writes()
        job.finish()
    assert job.kills >= 20
    assert in_writing >= 3
    same(whole, job.path)
