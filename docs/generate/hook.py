"""MkDocs hook: pages may link to any file of the repository; the site carries a copy of each.

On GitHub `../../examples/quickstart.yaml` is a file beside docs/. The site has nothing beside
docs/, so every file that a page links to becomes a page of its own under files/: Markdown as it is,
anything else as a block of code.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
FILES = "files/"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash"}

_FENCE = re.compile(r"^(```|~~~)")
_LINK = re.compile(r"(?P<start>\]\()(?P<target>[^)\s#:]+)(?P<rest>(?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to, directly or through others."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        if not source.endswith(".md"):
            continue
        for target in _targets(source):
            if target in seen or target.startswith(DOCS):
                continue
            seen.add(target)
            waiting.append(target)
            files.append(_page_of(target, source, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the page's links at the copies."""
    here = _source(page.file.src_uri)
    if here is None:  # a copy that is a block of code
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = _resolved(here, match["target"])
        place = target.removeprefix(DOCS) if target.startswith(DOCS) else _place(target)
        link = os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")
        return f"{match['start']}{link}{match['rest']}"

    return "\n".join(_LINK.sub(moved, line) if prose else line for line, prose in _lines(markdown))


def _source(src_uri: str) -> str | None:
    """The repository's path of a page; None if the page shows a file as code."""
    if not src_uri.startswith(FILES):
        return DOCS + src_uri
    path = src_uri.removeprefix(FILES)
    return path if (ROOT / path).is_file() else None


def _place(target: str) -> str:
    """Where in the site the page of a file outside docs/ is."""
    return FILES + (target if target.endswith(".md") else f"{target}.md")


def _page_of(target: str, source: str, config: MkDocsConfig) -> File:
    path = ROOT / target
    if not path.is_file():
        raise PluginError(f"{source} links to {target}, which is not a file")
    text = path.read_text()
    if path.suffix != ".md":
        language = LANGUAGES.get(path.suffix, "text")
        text = f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n````{language}\n{text}\n````\n"
    return File.generated(config, _place(target), content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def _targets(source: str) -> Iterator[str]:
    for line, prose in _lines((ROOT / source).read_text()):
        if prose:
            for match in _LINK.finditer(line):
                yield _resolved(source, match["target"])


def _resolved(source: str, target: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(source), target))


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is prose: not in a block of code, fenced or indented."""
    fenced = False
    for line in markdown.splitlines():
        if _FENCE.match(line.strip()):
            fenced = not fenced
            yield line, False
        else:
            yield line, not fenced and not line.startswith("    ")
