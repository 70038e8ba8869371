"""The fenced blocks of the documents, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md", *DOCS]

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The name of its file.
        line: Of the file, where its text begins.
        language: As the fence names it; "" where it does not.
        text: Without the indentation of the list that it may be in.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a block of Python is, by the comment in its first line."""
        match = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return match[1] if match else None


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(path, *languages):
    """The fenced blocks of a page, in order: of some languages, or all."""
    text = read(path)
    found = []
    for match in _FENCED.finditer(text):
        indent, language, content = match.groups()
        line = text.count("\n", 0, match.start(3)) + 1
        content = re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)
        if not languages or language in languages:
            found.append(Block(path.name, line, language, content))
    return found


def prose(path):
    """The text without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", read(path), flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """The commands of a shell's text: lines with what continues them, cut at `&&`."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        parts = [""]
        for token in re.findall(r"'[^']*'|\"[^\"]*\"|#.*|&&|.", line):
            if token == "&&":
                parts.append("")
            elif not (token.startswith("#") and parts[-1][-1:] in ("", " ")):
                parts[-1] += token
        found += [part.strip() for part in parts if part.strip()]
    return found


def calls(command):
    """The calls of tfgpu in a command: the name of each, and its arguments."""
    words = shlex.split(command)
    for position, word in enumerate(words):
        if words[position - 1 : position] == ["-m"] and word.startswith("tfgpu."):
            name, rest = word.removeprefix("tfgpu."), words[position + 1 :]
        elif Path(word).name == "tfgpu" and words[position + 1 : position + 2]:
            name, rest = words[position + 1], words[position + 2 :]
        else:
            continue
        ends = [index for index, each in enumerate(rest) if each in ("|", ">", ";")]
        rest = rest[: min(ends, default=len(rest))]
        if name == "launch" and "--" in rest:
            split = rest.index("--")
            yield rest[split + 1], rest[split + 2 :]
            rest = rest[:split]
        yield name, rest


def with_flags(command, flags):
    """A command with flags right behind the names of our commands, so that its own win.

    Args:
        command: A command for a shell.
        flags: Flags by the name of the command that takes them.
    """

    def longer(match):
        return f"{match[0]} {' '.join(flags[match[2]])}" if flags.get(match[2]) else match[0]

    behind = r"-m tfgpu\.|(?<![\w.-])tfgpu | -- "
    return re.sub(rf"({behind})({'|'.join(flags)})(?=\s|$)", longer, command)
