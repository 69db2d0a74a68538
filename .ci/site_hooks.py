"""Hooks of MkDocs for the site of ``docs/`` (``mkdocs.yml``): repository files, Markdown of pages, ``llms.txt``.

Links of a page to files outside ``docs/``, such as ``../SECURITY.md``, lead to a copy under ``repository/`` on the
site, Markdown as a page and anything else as it is. A link to a file that does not exist ends the build.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_COPIES = "repository/"
_CODE = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_ELSEWHERE = re.compile(r"<(?:script|img|iframe|link(?![^>]*canonical))\b[^>]*\s(?:src|href)=.?(?:https?:)?//[^>]*>")
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^()#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, and those that these link to."""
    pages = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    wanted = {item.removeprefix(_COPIES) for item in re.findall(rf"{_COPIES}[\w./-]+", str(config.nav))}
    added: set[str] = set()
    while pages or wanted - added:
        for path in sorted(wanted - added):
            added.add(path)
            if not (ROOT / path).is_file():
                raise SystemExit(f"a page links to {path}, which is not a file of the repository")
            files.append(File.generated(config, _COPIES + path, abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                pages.append((_COPIES + path, (ROOT / path).read_text()))
        uri, text = pages.pop() if pages else ("", "")
        found = {_place(uri, target) for target in _LINK.findall(_CODE.sub("", text))}
        wanted |= {path for path in found if not path.startswith("docs/")}
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page to where their targets are on the site."""
    return _rewritten(page.file.src_uri, markdown)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Keep the navigation for ``llms.txt``."""
    config.extra["navigation"] = nav
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write each page's Markdown beside it, and ``llms.txt`` (llmstxt.org), which lists them."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}\n\n> {config.site_description}\n"]
    for section in config.extra["navigation"].items:
        lines.append(f"\n## {section.title}\n\n")
        for page in _pages(section):
            source = Path(page.file.abs_src_path).read_text()
            copy = site / page.file.src_uri
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(_rewritten(page.file.src_uri, source))
            lines.append(f"- [{page.title}]({page.file.src_uri}): {_summary(source)}\n")
    (site / "llms.txt").write_text("".join(lines))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the search for screen readers; end the build if a page would load something from elsewhere."""
    if found := _ELSEWHERE.search(output):
        raise SystemExit(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def _pages(section: Section) -> Iterator[Page]:
    for child in section.children or ():
        if isinstance(child, Page):
            yield child
        else:
            yield from _pages(child)


def _summary(source: str) -> str:
    """Return the first sentence of a page."""
    paragraphs = re.split(r"\n\s*\n", _CODE.sub(lambda code: code[0] if "\n" not in code[0] else "", source))
    text = next((" ".join(part.split()) for part in paragraphs if part.strip() and part.strip()[0] not in "#<|!="), "")
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0].rstrip(":.") + "."


def _place(uri: str, target: str) -> str:
    """Return the path in the repository that a link of a page means."""
    here = uri.removeprefix(_COPIES) if uri.startswith(_COPIES) else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def _rewritten(uri: str, markdown: str) -> str:
    def link(match: re.Match[str]) -> str:
        path = _place(uri, match[1])
        there = path.removeprefix("docs/") if path.startswith("docs/") else _COPIES + path
        return posixpath.relpath(there, posixpath.dirname(uri) or ".")

    code = [(found.start(), found.end()) for found in _CODE.finditer(markdown)]
    return _LINK.sub(
        lambda match: match[0] if any(begin <= match.start() < end for begin, end in code) else link(match), markdown
    )
