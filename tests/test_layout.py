"""Modules are short, and their tests lie where they do."""

import collections
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 500
# Folders of tests/ that are of no one package of tfgpu/.
OTHERS = {"differential", "keras_yardstick"}


def folders(place):
    """The folders right in `place` that hold modules."""
    return {path.parent.name for path in place.glob("*/*.py")}


@pytest.mark.parametrize("place", ["tfgpu", "tests", "experiments"])
def test_no_module_is_long(place):
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((ROOT / place).rglob("*.py"))
    }
    assert lines
    long = [f"{path} has {count} lines" for path, count in lines.items() if count > LONGEST]
    assert not long, "\n".join(long)


def test_the_folders_of_tests_are_packages():
    assert folders(ROOT / "tests") - folders(ROOT / "tfgpu") == OTHERS


def test_no_two_modules_of_tests_have_one_name():
    # pytest imports them by their names alone, but for conftest.py and those of packages.
    names = collections.Counter(
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if path.name != "conftest.py" and not (path.parent / "__init__.py").exists()
    )
    assert [name for name, count in names.items() if count > 1] == []
