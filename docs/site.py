"""Hooks of mkdocs (mkdocs.yml): the roads of docs/index.md become the navigation; pages outside docs/ join the site.

A page keeps its links as they work on a forge: relative to its own place in the repository. What a link outside docs/
leads to becomes a page of the site under the same path. A file that is not Markdown (a config, an sbatch file) is shown
as text, a folder as a list of its files.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROAD = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
ENTRY = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation: a section for each road, with the pages that no earlier road has, in its order."""
    config.nav = []
    seen: set[str] = set()
    for title, entries in _roads().items():
        config.nav.append({title: [{words: place} for words, place in entries if place not in seen]})
        seen.update(place for _, place in entries)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in what pages link to outside docs/, and what those pages link to."""
    on_roads = {place for entries in _roads().values() for _, place in entries}
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        text, place = _text(path), _place_on_site(path)
        if not path.startswith("docs/"):
            inclusion = InclusionLevel.INCLUDED if place in on_roads else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place, content=text, inclusion=inclusion))
        for link, _ in LINK.findall(text):
            target = _target(os.path.dirname(path) if (ROOT / path).is_file() else path, link)  # noqa: PTH120
            if target not in known and not target.startswith("docs/") and (ROOT / target).exists():
                known.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places of the repository into links between places of the site.

    A link that leads nowhere is left as it is: mkdocs names it.
    """
    folder = PurePosixPath(page.file.src_uri).parent
    in_repository = folder if page.file.generated_by else "docs" / folder

    def on_site(match: re.Match[str]) -> str:
        target = _target(in_repository, match[1])
        if not (ROOT / target).exists():
            return match[0]
        return f"]({os.path.relpath(_place_on_site(target), folder)}{match[2] or ''})"

    return LINK.sub(on_site, markdown)


def _roads() -> dict[str, list[tuple[str, str]]]:
    """The roads of docs/index.md by title: the words of each link, and its place on the site."""
    _, *parts = ROAD.split(_text("docs/index.md"))
    roads = {}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        entries = [(_capital(words), _place_on_site(_target("docs", link))) for words, link in ENTRY.findall(body)]
        roads[_capital(title.removeprefix("For the "))] = entries
    first = next(iter(roads.values()))
    first.insert(0, ("Which road?", "index.md"))
    return roads


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _target(folder: str | PurePosixPath, link: str) -> str:
    """The path in the repository that a link of a page in `folder` leads to."""
    return os.path.normpath(PurePosixPath(folder) / link)


def _place_on_site(path: str) -> str:
    """Where a file or folder of the repository is among the sources of the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "readme.md"  # the site's first page is docs/index.md
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return path if path.endswith(".md") else f"{path}.md"


def _text(path: str) -> str:
    """A file or folder of the repository as Markdown."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if not one.name.startswith("."))
        return "\n".join([f"# {path}/", "", *(f"- [{name}]({name})" for name in names)])
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    head = f"---\nsearch: {{exclude: true}}\n---\n# {file.name}\n\n`{path}`"
    return f"{head}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n````\n"
