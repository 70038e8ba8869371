"""What the documents name is there: files, headings, flags. Their code has `test_snippets.py`."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest
from document_blocks import DOCS, PAGES, README, ROOT, blocks, prose, read

from tfgpu import errors

# Flags of programs that are not ours, in documents that say how ours are used.
OTHERS = {"cases", "dist", "from", "logdir", "nodes", "ntasks", "requeue", "rm", "signal"}


def _id(path):
    return path.name


def _anchors(path):
    """The names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _help(*words):
    command = [sys.executable, "-m", *words, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


@cache
def commands():
    listed = _help("tfgpu").partition("Commands")[2].partition("\n\n")[0]
    return tuple(re.findall(r"^  (\w+)  ", listed, re.MULTILINE))


@cache
def flags(command):
    return frozenset(re.findall(r"^  --(\w+)", _help(f"tfgpu.{command}"), re.MULTILINE))


def test_the_readme_is_short():
    assert len(read(README).splitlines()) < 350


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.is_file(), f"{page.name} links to {target}"
        assert place.is_relative_to(ROOT), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(place), f"{page.name} links to {target}"


def test_every_page_is_in_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)[)#]", read(README)))
    assert {page.name for page in DOCS} <= linked


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r": ([\w-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert {page.name for page in DOCS} <= set(listed)
    assert len(listed) == len(set(listed))


def test_every_notebook_is_in_the_readme_and_in_the_navigation():
    for path in (ROOT / "docs").glob("*.ipynb"):
        assert f"](docs/{path.name})" in read(README)
        assert f": {path.stem}.md\n" in read(ROOT / "mkdocs.yml")


def test_every_picture_is_shown():
    shown = "".join(read(page) for page in [README, *DOCS])
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"{picture.name})" in shown, picture


def test_there_is_a_page_with_its_settings_for_each_command():
    assert len(commands()) >= 7
    for command in commands():
        text = read(ROOT / "docs" / f"{command}.md")
        assert text.startswith(f"# tfgpu {command}\n")
        assert text.count(f"<!-- settings: {command} -->\n") == 1
        assert text.count("<!-- /settings -->") == 1


@pytest.mark.parametrize("page", [README, *DOCS], ids=_id)
def test_flags_exist(page):
    known = frozenset().union(*map(flags, commands())) | OTHERS
    # What a console shows may be wrong on purpose.
    text = re.sub(r"^```console$.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--([a-z]\w*)", text))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_files_that_are_named_exist(page):
    # A name in the root's folders; `results/` and the like are named under `experiments/`.
    pattern = r"(?<![\w/.-])((?:experiments|tests|docs|\.ci|\.github)/[\w./-]*\w/?)"
    for name in re.findall(pattern, read(page)):
        if "FOLDER" not in name:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_pages_that_errors_name_are_there():
    sources = [read(path) for path in (ROOT / "tfgpu").rglob("*.py")]
    named = {page for text in sources for page in re.findall(r"\bpage ?= ?\"([\w#-]+)\"", text)}
    assert len(named) >= 6
    for page in named:
        file, _, anchor = page.partition("#")
        place = ROOT / errors.PAGES.format(file)
        assert place in DOCS, page
        assert not anchor or anchor in _anchors(place), page


def test_what_the_architecture_names_is_in_the_package():
    page = ROOT / "docs" / "architecture.md"
    package = ROOT / "tfgpu"
    (tree,) = blocks(page, "text")
    folder = package
    for line in tree.text.partition("\ntests/")[0].splitlines()[1:]:
        indent, name, rest = re.fullmatch(r"( *)(\S*) *(.*)", line).groups()
        if len(indent) == 2:
            folder = package / name
            assert folder.exists(), line
            for module in re.findall(r"\w+\.py", rest):
                assert (folder / module).is_file(), line
        elif name:
            assert (folder / name).is_file(), line
    for name in re.findall(r"`([a-z]+/[a-z_]+\.py)`", prose(page)):
        assert (package / name).is_file(), name


def test_the_tables_of_scaling_are_those_of_the_formulas():
    command = [sys.executable, str(ROOT / "experiments" / "scaling_model.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tables_of_settings_are_those_of_the_declarations():
    command = [sys.executable, str(ROOT / "docs" / "update_settings.py"), "--check"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "")
