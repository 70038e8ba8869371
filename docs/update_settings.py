"""Writes the tables of settings in the pages of the commands from their declarations.

python docs/update_settings.py          rewrites the pages
python docs/update_settings.py --check  exits with 1 when a page is not what it would write
"""

import re
import sys
from pathlib import Path

from tfgpu.cli import flags
from tfgpu.cli.entry import COMMANDS

ON_RESUME = {"refused": "same value", "allowed": "may differ", "ignored": "does not matter"}
HERE = Path(__file__).parent


def table(command: str) -> str:
    """Returns the settings of a command as Markdown, a table for each section of its help page."""
    settings = flags.settings_of(command)
    lines = []
    for title, rows in flags.described(command).items():
        resumes = command == "train" and title != "General"
        head = ["flag", "default", "meaning", *(["in a continued run"] if resumes else [])]
        lines += ["", f"**{title}**", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for flag, default, text in rows:
            cells = [f"`{flag}`", f"`{default}`" if default else "", text]
            if resumes:
                name = flag[2:].partition("=")[0]
                cells.append(ON_RESUME[str(settings.setting(name).on_resume)])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines[1:])


def updated(command: str) -> tuple[Path, str, str]:
    """Returns the page of a command, its text, and the text with the table as it should be."""
    page = HERE / f"{command}.md"
    text = page.read_text(encoding="utf-8")
    block = rf"(<!-- settings: {command} -->\n).*?(\n<!-- /settings -->)"
    new, count = re.subn(block, lambda m: m[1] + table(command) + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} needs one block from <!-- settings: {command} -->")
    return page, text, new


if __name__ == "__main__":
    stale = [(page, new) for page, old, new in map(updated, COMMANDS) if old != new]
    for page, new in stale:
        if "--check" in sys.argv:
            print(f"{page} is not up to date: python docs/update_settings.py")
        else:
            page.write_text(new, encoding="utf-8")
    raise SystemExit(int(bool(stale) and "--check" in sys.argv))
