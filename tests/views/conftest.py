"""A browser, and pages in it that must give no cause for complaint."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
_AXE = Path(__file__).parent / "vendor" / "axe-core"
_WAIT = 120_000  # milliseconds until something that must happen has not


class Visit:
    """A page in a browser that has never been here, and all that it asked for and complained of.

    Args:
        page: the page.
        shots: the folder of its screenshots, if any.
    """

    def __init__(self, page: Page, shots: Path | None) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[Request] = []
        self.dialogs: list[str] = []
        self._shots = shots
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.accept()))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self.complaints.append(message.text)

    def go(self, url: str) -> Page:
        """Open an address in a fresh document."""
        self.page.goto("about:blank")
        self.page.goto(url)
        return self.page

    def answered(self, count: int = 1) -> None:
        """Wait until that many answers stand there and none is being written."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.notes').length >= count && !document.querySelector('[aria-busy]')",
            arg=count,
        )

    def shot(self, name: str) -> None:
        """Keep a screenshot, where ``SCREENSHOTS`` names a folder for them."""
        if self._shots is not None:
            self.page.screenshot(path=self._shots / f"{name}.png")

    def outside(self) -> list[str]:
        """Requests to anyone but the page's own origin."""
        own = re.match(r"https?://[^/]+/", self.page.url)
        allowed = (own.group() if own else "", "about:", "data:", "blob:")
        return [request.url for request in self.requests if not request.url.startswith(allowed)]

    def violations(self, *rules: str) -> list[str]:
        """What axe-core finds that is serious or critical.

        Args:
            rules: the names of its rules to apply; by default all.
        """
        if not self.page.evaluate("Boolean(window.axe)"):
            self.page.evaluate((_AXE / "axe.min.js").read_text(encoding="utf-8"))
        options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
        found: dict[str, Any] = self.page.evaluate("options => axe.run(document, options)", options)
        return [
            f"{rule['id']}: {node['html']}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("THE PAGES ARE NOT TESTED IN A BROWSER: run `apt-get install chromium`")
    expect.set_options(timeout=_WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shots() -> Path | None:
    """Where screenshots go: ``SCREENSHOTS``; without it none are taken."""
    named = os.environ.get("SCREENSHOTS")
    if not named:
        return None
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def visiting(chromium: Browser, shots: Path | None) -> Iterator[Callable[..., Visit]]:
    """Makes visits; options are Playwright's of a context. Afterwards none may have complained or asked elsewhere.

    A page asks its service for statistics until it is closed: the service must outlive the visits.
    """
    made: list[Visit] = []

    def make(**options: Any) -> Visit:
        context = chromium.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        context.set_default_timeout(_WAIT)
        made.append(Visit(context.new_page(), shots))
        return made[-1]

    yield make
    found = [(visit.complaints, visit.outside(), visit.dialogs) for visit in made]
    for visit in made:
        visit.page.context.close()
    assert found == [([], [], [])] * len(found)


@pytest.fixture
def visits(chromium: Browser, shots: Path | None) -> Iterator[Callable[..., Visit]]:
    """See ``visiting``."""
    with visiting(chromium, shots) as make:
        yield make


@pytest.fixture
def visit(visits: Callable[..., Visit]) -> Visit:
    """One visit on a wide screen."""
    return visits()
