"""The pages of docs/: links that lead somewhere, and a place for each in the navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from handlers.api.routes import ROUTES
from tests.support.models import ROOT

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
CODE = re.compile(r"^( *)(```).*?^\1\2\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """A relative link names a file that is there, and a heading of it."""
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", CODE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_each_page_has_a_place_in_the_navigation() -> None:
    """``mkdocs.yml`` names each page of docs/ once."""
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(name for name in named if not name.startswith("repository/")) == sorted(pages)


def test_the_readme_is_short() -> None:
    """A reader sees all of the README; what is longer has a page."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_the_api_names_every_route() -> None:
    """``docs/routes.md`` has each route that the service has, whatever the parameter of a path is called."""
    page = (ROOT / "docs/routes.md").read_text()
    routes = {f"{route.method} {re.sub(r'{[^}]*}', '{id}', route.plain_path)}" for route in ROUTES}
    named = {f"{method} {path}" for method, path in re.findall(r"`([A-Z]+) ([^`]+)`", page)}
    shared = {f"{method} {path}" for method, path in re.findall(r"`([A-Z]+)` and `[A-Z]+ ([^`]+)`", page)}
    assert routes - named - shared == set()
