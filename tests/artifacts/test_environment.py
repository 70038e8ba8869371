"""environment.json: what a figure was measured on."""

import json
import subprocess

from tfgpu.artifacts import environment
from tfgpu.machine import runtime


def test_the_environment_is_json(tensorflow):
    found = environment.record(runtime.start(), dataset={"name": "digits"})
    assert json.loads(json.dumps(found)) == found
    assert found["dataset"] == {"name": "digits"}
    assert found["versions"]["tensorflow"] and found["versions"]["keras"]
    assert [device["name"] for device in found["devices"]] == ["CPU:0", "CPU:1"]


def test_the_environment_keeps_no_secrets(tensorflow, monkeypatch):
    monkeypatch.setenv("TF_VAR_password", "secret")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_foo=1")
    found = environment.record(runtime.start())["variables"]
    assert "TF_VAR_password" not in found
    assert found["XLA_FLAGS"] == "--xla_cpu_foo=1"


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_the_revision_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = environment._git(tmp_path)
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert environment._git(tmp_path)["dirty"] is True


def test_a_package_inside_another_checkout_has_no_revision(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    assert environment._git(tmp_path / "site-packages") is None
