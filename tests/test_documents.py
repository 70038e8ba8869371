"""What the documents name is there: files, headings, flags, commands; and their code is code."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tfgpu import errors

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md", *DOCS]

# Flags of programs that are not ours, in documents that say how ours are used.
OTHERS = {"cases", "from", "logdir", "nodes", "ntasks", "requeue", "signal"}


def _id(path):
    return path.name


def _text(path):
    return path.read_text(encoding="utf-8")


def _blocks(path, language):
    """The fenced blocks of a language, without the indentation of the list they may be in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", _text(path), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def _prose(path):
    """The text without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", _text(path), flags=re.MULTILINE | re.DOTALL)


def _anchors(path):
    """The names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
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
    assert len(_text(README).splitlines()) < 350


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.is_file(), f"{page.name} links to {target}"
        assert place.is_relative_to(ROOT), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(place), f"{page.name} links to {target}"


def test_every_page_is_in_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)[)#]", _text(README)))
    assert {page.name for page in DOCS} <= linked


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r": ([\w-]+\.md)$", _text(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert {page.name for page in DOCS} <= set(listed)
    assert len(listed) == len(set(listed))


def test_every_picture_is_shown():
    shown = "".join(_text(page) for page in [README, *DOCS])
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"{picture.name})" in shown, picture


def test_there_is_a_page_with_its_settings_for_each_command():
    assert len(commands()) >= 7
    for command in commands():
        text = _text(ROOT / "docs" / f"{command}.md")
        assert text.startswith(f"# tfgpu {command}\n")
        assert text.count(f"<!-- settings: {command} -->\n") == 1
        assert text.count("<!-- /settings -->") == 1


@pytest.mark.parametrize("page", [README, *DOCS], ids=_id)
def test_flags_exist(page):
    known = frozenset().union(*map(flags, commands())) | OTHERS
    # What a console shows may be wrong on purpose.
    text = re.sub(r"^```console$.*?^```$", "", _text(page), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--([a-z]\w*)", text))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_take_their_flags(page):
    for block in _blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for position, word in enumerate(words):
                command = None
                if word.startswith("tfgpu.") and words[position - 1] == "-m":
                    command, rest = word.removeprefix("tfgpu."), words[position + 1 :]
                elif word.endswith("tfgpu") and words[position + 1 : position + 2]:
                    command, rest = words[position + 1], words[position + 2 :]
                if command == "launch" and "--" in rest:
                    split = rest.index("--")
                    _check_flags(page, line, rest[split + 1], rest[split + 2 :])
                    rest = rest[:split]
                if command in commands():
                    _check_flags(page, line, command, rest)


def _check_flags(page, line, command, words):
    for word in words:
        if match := re.match(r"--(\w+)", word):
            assert match[1] in flags(command), f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_python_parses(page):
    for block in _blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_files_that_are_named_exist(page):
    # A name in the root's folders; `results/` and the like are named under `experiments/`.
    pattern = r"(?<![\w/.-])((?:experiments|tests|docs|\.ci|\.github)/[\w./-]*\w/?)"
    for name in re.findall(pattern, _text(page)):
        if "FOLDER" not in name:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_pages_that_errors_name_are_there():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tfgpu").rglob("*.py")]
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
    (tree,) = _blocks(page, "text")
    folder = package
    for line in tree.partition("\ntests/")[0].splitlines()[1:]:
        indent, name, rest = re.fullmatch(r"( *)(\S*) *(.*)", line).groups()
        if len(indent) == 2:
            folder = package / name
            assert folder.exists(), line
            for module in re.findall(r"\w+\.py", rest):
                assert (folder / module).is_file(), line
        elif name:
            assert (folder / name).is_file(), line
    for name in re.findall(r"`([a-z]+/[a-z_]+\.py)`", _prose(page)):
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
