"""What is launched is checked before any worker starts."""

import launches
import pytest

from tfgpu.cli import flags
from tfgpu.errors import RequestError
from tfgpu.launch import __main__ as main
from tfgpu.launch import command as commands
from tfgpu.launch.settings import LaunchSettings

LOCAL = LaunchSettings(workers=2)


def read(*argv, config=LOCAL):
    return commands.read(config, argv)


def test_workers_train_over_several_machines_and_without_a_bar():
    added = ["--strategy=multi_worker_mirrored", "--progress=plain"]
    assert read("train", "--epochs=3").argv == ["train", *added, "--epochs=3"]


def test_flags_that_were_given_are_not_given_again():
    given = ["--progress=none", "--strategy=multi_worker_mirrored"]
    assert read("train", *given).argv == ["train", *given]


def test_join_timeout_is_passed_on():
    config = LaunchSettings(workers=2, join_timeout=30)
    command = read("train", config=config)
    assert flags.parse(command.argv[1:]).join_timeout == 30


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--workers=0", "--", "train"], "--workers=0: must be at least 1"),
        (["--workers=2", "train"], "--"),
        (["--workers=2", "--epochs=3"], "what to start is missing"),
        (["--workers=2"], "what to start is missing"),
        (["--workers=2", "--"], "what to start is missing"),
        (["--workers=2", "more", "--", "train"], "'more'"),
        (["--", "train"], "--workers is missing"),
        (["--workers=2", "--", "trian"], "did you mean 'train'"),
        (["--workers=2", "--", "tune"], "tfgpu tune --workers=N"),
        (["--workers=2", "--", "bench"], "bench"),
        (["--workers=2", "--", "export", "--run_dir=x"], "export"),
        (["--workers=2", "--", "launch"], "launch"),
        (["--workers=2", "--backend=slrum", "--", "train"], "did you mean 'slurm'"),
        (["--workers=2", "--", "train", "--strategy=mirrored"], "--strategy=mirrored"),
        (["--workers=2", "--", "train", "--strategy", "mirrored"], "--strategy=mirrored"),
        (["--workers=2", "--", "train", "--epochs=0"], "--epochs=0"),
        (["--workers=2", "--", "train", "--epoch=3"], "did you mean '--epochs'"),
        (["--workers=2", "--", "train", "--devices=GPU:0"], "CUDA_VISIBLE_DEVICES"),
        (["--workers=2", "--", "predict", "--run_dir=x", "-"], "standard input"),
        (["--workers=2", "--port=5", "--", "train"], "--port=5: is for --backend=slurm"),
        (["--backend=slurm", "--port=65536", "--", "train"], "65535"),
        (["--backend=slurm", "--max_restarts=1", "--", "train"], "--max_restarts=1: is for"),
        (
            ["--workers=2", "--join_timeout=9", "--", "train", "--join_timeout=9"],
            "--join_timeout stands before",
        ),
    ],
    ids=" ".join,
)
def test_an_impossible_request_is_refused(argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as refused:
        main.main(argv)
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_whose_package_is_missing_names_the_extra(monkeypatch):
    from tfgpu.launch import run

    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'tfgpu\[ray\]'"):
        main.main(["--workers=2", "--backend=ray", "--", "train"])


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path):
    done = launches.launch("--workers=2", "--", "tune", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tfgpu: ") and done.stderr.count("\n") == 1


def test_a_new_run_gets_its_directory_before_it_starts(tmp_path, monkeypatch):
    """Workers that are started again have to find it under the same name."""
    monkeypatch.chdir(tmp_path)
    with commands.with_run_dir(read("train", "--model=mine:build")) as placed:
        given = flags.parse(placed.argv[1:]).run_dir
        assert given == placed.run_dir
        assert given.startswith("runs/digits-mine-build-")
        assert (tmp_path / given).is_dir()
        with commands.with_run_dir(read("train", "--model=mine:build")) as another:
            assert another.run_dir != given


def test_a_directory_that_nobody_wrote_to_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with commands.with_run_dir(read("train")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_named_is_left_to_the_workers(tmp_path):
    with commands.with_run_dir(read("train", f"--run_dir={tmp_path / 'a'}")) as placed:
        assert placed.run_dir == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_start_again_may_continue_what_was_not_to_be_continued():
    command = read("train", "--run_dir=a", "--resume=never")
    assert flags.parse(command.argv[1:]).resume == "never"
    assert flags.parse(command.again().argv[1:]).resume == "auto"


def test_the_command_that_continues_is_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LaunchSettings(workers=2, max_restarts=3)
    with commands.with_run_dir(read("train", "--epochs=3", config=config)) as placed:
        line = placed.continued_by(config)
    run_dir = f"--run_dir={placed.run_dir}"
    assert line == f"tfgpu launch --workers=2 --max_restarts=3 -- train {run_dir} --epochs=3"


def test_help_of_the_command_behind_is_answered(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--workers=2", "--", "train", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: tfgpu train ")
