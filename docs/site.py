"""Hooks of MkDocs: pages and pictures from outside of docs/, and notebooks, are part of the site.

The start page is README.md. Whatever else a page links to in the repository (BUILD.md, a result)
is copied to the same place of the site, so that links work here as they do in a checkout. A
notebook becomes a page, and can be downloaded from it.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
START = "README.md"
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def place(target: str, page: str) -> str:
    """Where in the site a link of a page leads.

    Args:
        target: As it is written, without an anchor.
        page: The page's file, from the repository's root, as the target's will be.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if path == START:
        return "index.md"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def relinked(text: str, page: str) -> str:
    """The text of a page with its links as the site has them."""
    here = posixpath.dirname(place(posixpath.basename(page), page))

    def link(match: re.Match[str]) -> str:
        target = posixpath.relpath(place(match[2], page), here or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return LINK.sub(link, text)


def linked(text: str, page: str) -> set[str]:
    """The files of the repository that a page links to, from the root."""
    found = {
        posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        for match in LINK.finditer(text)
    }
    return {path for path in found if (ROOT / path).is_file()}


def of_notebook(path: Path) -> str:
    """A notebook as Markdown: its text, and its code in fenced blocks."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"Download: [{path.name}]({path.name})")
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds README.md, the notebooks, and all that is linked to and lies elsewhere."""
    waiting = [START, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(waiting)
    while waiting:
        page = waiting.pop()
        path = ROOT / page
        if not page.startswith("docs/"):
            if page.endswith(".md"):
                content: Any = relinked(path.read_text(encoding="utf-8"), page)
                files.append(File.generated(config, place(page, ""), content=content))
            else:
                files.append(File.generated(config, place(page, ""), abs_src_path=str(path)))
        if page.endswith(".md"):
            new = linked(path.read_text(encoding="utf-8"), page) - known
            known |= new
            waiting += [file for file in new if not file.startswith("docs/")]
    for path in (ROOT / "docs").glob("*.ipynb"):
        files.append(File.generated(config, f"{path.stem}.md", content=of_notebook(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links that lead out of docs/ into those of the site."""
    if page.file.generated_by:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}")
