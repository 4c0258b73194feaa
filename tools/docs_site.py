"""A hook of MkDocs: adds pictures from outside docs/ to the site, and replaces links to source files by their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the stored pictures and the change log."""
    for page in list(files.documentation_pages()):
        for mark, _, path, _ in LINK.findall(page.content_string):
            if mark and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(
        File.generated(config, "changes.md", content=(ROOT / "CHANGELOG.md").read_text().replace("](docs/", "]("))
    )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A picture's link, or a source file's name with its place in the repository."""

    def linked(found: re.Match[str]) -> str:
        mark, text, path = found[1], found[2], found[3]
        if mark:
            return f"![{text}]({path})"
        before = markdown[: found.start()].rpartition("\n\n")[2]
        return f"{text}: `{path}`" if before.count("(") > before.count(")") else f"{text} (`{path}`)"

    return LINK.sub(linked, markdown)
