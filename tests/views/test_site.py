"""The site of docs/ in a browser: with ``SOAK=1``, on each page, in both themes, on a wide screen and a narrow one."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests.service import free_port
from tests.support.models import ROOT
from tests.support.soak import SOAK
from tests.support.waiting import wait_until
from tests.views.conftest import Visit

MKDOCS = ROOT / ".venv-docs/bin/mkdocs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The site behind a web server: its URL, and its pages."""
    if not SOAK or not MKDOCS.exists():
        pytest.skip("THE SITE IS NOT TESTED IN A BROWSER: run `make docs`, then this with SOAK=1")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([MKDOCS, "build", "--strict", "--quiet", "--site-dir", folder], cwd=ROOT, check=True, timeout=120)
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", folder]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close() is None)
        pages = [str(page.relative_to(folder)) for page in sorted(folder.rglob("*.html")) if page.name != "404.html"]
        yield f"http://127.0.0.1:{port}", pages
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages(visits: Callable[..., Visit], site: tuple[str, list[str]], scheme: str, width: int) -> None:
    """No page has a serious fault of accessibility, is wider than the screen, or loads something from elsewhere."""
    url, pages = site
    visit = visits(color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    for name in pages:
        page = visit.go(f"{url}/{name}")
        page.wait_for_timeout(100)  # the theme's script wraps tables
        assert visit.violations() == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        visit.shot(f"site-{Path(name).stem}-{scheme}-{width}")
