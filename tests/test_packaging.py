"""What the package declares is what it needs, and what the docs promise about it holds."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The module a distribution is imported as, where the names differ.
MODULE_OF = {
    "absl-py": "absl",
    "ai-edge-litert": "ai_edge_litert",
    "google-crc32c": "google_crc32c",
    "grpcio": "grpc",
    "keras-rs": "keras_rs",
    "keras-tuner": "keras_tuner",
    "nvidia-ml-py": "pynvml",
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
}

# Modules that import what an extra brings, and that extra.
OPTIONAL = {
    "coco_evaluation": "detection",
    "hardware_monitor": "hardware",
    "image_files": "heic",
    "mlflow_tracker": "mlflow",
    "parquet_source": "parquet",
    "recommenders": "recommendation",
    "wandb_tracker": "wandb",
}


@pytest.fixture(scope="module")
def setup_call() -> dict:
    """The keyword arguments that setup.py hands to `setup`."""
    setuptools = mock.MagicMock()
    with mock.patch.dict(sys.modules, setuptools=setuptools):
        runpy.run_path(str(ROOT / "setup.py"))
    (call,) = setuptools.setup.call_args_list
    return call.kwargs


def _modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements]
    return {MODULE_OF.get(name, name) for name in names}


def _third_party_imports(path: Path) -> set[str]:
    """Top-level modules beyond the standard library that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    folders = (ROOT / "tests", ROOT / "experiments")
    ours = {"tfgpu", *(file.stem for folder in folders for file in folder.rglob("*.py"))}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - ours


def _sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no sources in {folder}/"
    return files


def test_every_import_of_the_package_is_declared(setup_call):
    declared = _modules(setup_call["install_requires"])
    extra = {
        name: declared | _modules(setup_call["extras_require"][name])
        for name in ("tune", "plots", "export", "kubernetes", "ray", "recommendation")
    }
    for module, name in OPTIONAL.items():
        extra[module] = declared | _modules(setup_call["extras_require"][name])
    for path in _sources("tfgpu"):
        allowed = extra.get(path.stem, declared)
        if path.parent.name in ("export", "tune"):
            allowed = extra[path.parent.name]
        undeclared = _third_party_imports(path) - allowed
        assert not undeclared, f"{path} imports {undeclared}, which setup.py does not declare"


def test_every_import_of_the_tests_is_declared(setup_call):
    extras = setup_call["extras_require"]
    # The tests of trackers are skipped without theirs.
    brought = [*extras["test"], *extras["mlflow"], *extras["wandb"]]
    declared = _modules(setup_call["install_requires"] + brought)
    for path in _sources("tests"):
        undeclared = _third_party_imports(path) - declared
        assert not undeclared, f"{path} imports {undeclared}, which setup.py does not declare"


def test_no_version_of_tensorflow_without_an_upper_bound(setup_call):
    """The trainer's internals that we override are not a stable interface of Keras."""
    for requirement in setup_call["install_requires"] + setup_call["extras_require"]["cuda"]:
        if requirement.startswith(("tensorflow>", "tensorflow[", "keras>")):
            assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement


def test_the_upper_bounds_are_the_newest_versions_that_were_tried(setup_call):
    from tfgpu.engine.private_names import NEWEST

    for name, (major, minor) in NEWEST.items():
        (bound,) = [each for each in setup_call["install_requires"] if each.startswith(f"{name}>")]
        assert bound.endswith(f",<{major}.{minor + 1}")


def test_lowest_prints_every_lower_bound(setup_call):
    script = ROOT / ".ci" / "lowest"
    printed = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*(\.\*)?", line) for line in printed), printed
    assert {line.partition("==")[0] for line in printed} >= {
        requirement.partition(">=")[0] for requirement in setup_call["install_requires"]
    }


def test_types_are_shipped(setup_call):
    assert (ROOT / "tfgpu" / "py.typed").exists()
    assert "py.typed" in setup_call["package_data"]["tfgpu"]


def test_templates_are_shipped(setup_call):
    (pattern,) = setup_call["package_data"]["tfgpu.report"]
    assert len(list((ROOT / "tfgpu" / "report").glob(pattern))) >= 4


def test_console_script_names_a_function(setup_call):
    (script,) = setup_call["entry_points"]["console_scripts"]
    assert script == "tfgpu = tfgpu.cli.entry:main"
    tree = ast.parse((ROOT / "tfgpu" / "cli" / "entry.py").read_text(encoding="utf-8"))
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_version_is_the_newest_of_the_changelog_or_the_next(setup_call):
    import tfgpu

    assert setup_call["version"] == tfgpu.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n" in changelog
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    # every second-level heading is Unreleased or a release with its date
    assert len(re.findall(r"^## ", changelog, re.MULTILINE)) == len(releases) + 1
    numbers = [tuple(map(int, release.split("."))) for release in releases]
    assert numbers == sorted(set(numbers), reverse=True)
    version = tuple(map(int, tfgpu.__version__.split(".")))
    if not numbers or version > numbers[0]:
        unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
        assert re.search(r"^- ", unreleased, re.MULTILINE), "a new version without an entry"
    else:
        assert version == numbers[0]


@pytest.mark.parametrize("marker", ["main job command", "test command"])
def test_readme_command_stands_alone(marker):
    """`.ci/run` takes the two commands from the README by these comments."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- {marker} -->\n```bash\n([^`]+)\n```$", readme, re.MULTILINE)
    assert len(found) == 1, f"README.md needs one fenced block after <!-- {marker} -->"
    assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert len(found[0].splitlines()) == 1


def test_actions_are_pinned_by_commit():
    for workflow in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = workflow.read_text(encoding="utf-8")
        used = re.findall(r"uses: *(.+)$", text, re.MULTILINE)
        assert used, workflow
        for action in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), workflow


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 50


def test_the_citation_has_the_version(setup_call):
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == setup_call["version"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [("--tag=v0.0.0", "the tag is v0.0.0"), ("--tags", "the only argument is --tag=vX.Y.Z")],
)
def test_a_distribution_of_another_version_is_not_built(argument, said):
    command = [str(ROOT / ".ci" / "distribution"), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_the_lock_of_ci_holds_what_is_declared(setup_call):
    text = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    locked = {
        re.sub(r"[-_.]+", "-", name.lower()) for name in re.findall(r"^([\w.-]+)==", text, re.M)
    }
    declared = [*setup_call["install_requires"], *setup_call["extras_require"]["dev"]]
    names = {re.split(r"[\[<>=!~; ]", each)[0].lower().replace("_", "-") for each in declared}
    assert names <= locked, "run .ci/lock"
    assert text.count("--hash=sha256:") > len(locked)
