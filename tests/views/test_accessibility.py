"""axe-core on every view, in both themes, on a wide screen and a narrow one. Nothing serious, and nothing cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import fake_context
from tests.views.conftest import Visit
from tests.views.served import served

WORDS = (
    "# Title\n\n",
    "Some `code`, a [link](https://example.com/),",
    " a list:\n\n- one\n- two\n\n",
    "```py\nprint(1)\n```\n\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service whose model writes all that Markdown has."""
    with served(fake_context(FakeEncoder(words=WORDS))) as service:
        yield service.url


def drawer(page: Page, name: str) -> None:
    """Open a panel where it is not beside the view."""
    button = page.locator("div:not([hidden]) > .column > .bar-of-buttons .opens", has_text=name)
    if button.is_visible():
        button.click()


def chat(page: Page) -> Iterator[str]:
    yield "empty"
    drawer(page, "Chats")
    yield "chats"
    page.keyboard.press("Escape")
    page.get_by_label("Your message").fill("Hello")
    page.keyboard.press("Enter")
    page.locator(".copies").wait_for()
    yield "markdown"
    drawer(page, "Settings")
    page.get_by_label("Colour tokens by probability").check()
    yield "settings"
    page.keyboard.press("Escape")
    page.get_by_label("Your message").fill("Hello")
    page.keyboard.press("Enter")
    page.locator(".token[role=option]").last.wait_for()
    page.wait_for_function("!document.querySelector('[aria-busy]')")
    page.locator(".token[role=option]").first.focus()
    yield "tokens"
    page.get_by_role("button", name="Edit this message").last.click()
    yield "editing"
    page.get_by_role("button", name="Show request").click()
    yield "request"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="API key").click()
    yield "key"


def complete(page: Page) -> Iterator[str]:
    page.get_by_role("textbox", name="Prompt").fill("Once")
    page.get_by_role("button", name="Complete", exact=True).click()
    expect(page.locator(".result .notes")).to_contain_text(" out")
    yield "answered"


def compare(page: Page) -> Iterator[str]:
    page.get_by_role("button", name="Add a variant").click()
    page.locator(".variant summary").first.click()
    yield "three"
    page.get_by_label("Prompt for all").fill("Hello")
    page.keyboard.press("Control+Enter")
    page.locator("caption").wait_for()
    yield "answered"


def embed(page: Page) -> Iterator[str]:
    page.get_by_label("Texts, one per line").fill("A cat\nA dog\n" + "A long text " * 7)
    page.keyboard.press("Control+Enter")
    page.locator(".heat").wait_for()
    yield "answered"


def models(page: Page) -> Iterator[str]:
    page.locator(".card dd").first.wait_for()
    yield "all"


def live(page: Page) -> Iterator[str]:
    page.locator(".chart canvas").last.wait_for()
    page.locator("summary").first.click()
    page.locator(".chart td").first.wait_for()
    yield "all"


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("view", [chat, complete, compare, embed, models, live])
def test_view(visits: Callable[..., Visit], url: str, view: Callable[[Page], Iterator[str]], width: int) -> None:
    """axe-core finds nothing serious or critical, and nothing has to be scrolled sideways.

    The themes differ in their colours only, so of the dark one the contrasts are checked.
    """
    visit = visits(color_scheme="light", viewport={"width": width, "height": 800}, reduced_motion="reduce")
    page = visit.go(f"{url}/#/{view.__name__}")
    for state in view(page):
        assert visit.violations() == [], state
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state
        visit.shot(f"{view.__name__}-{state}-light-{width}")
        page.emulate_media(color_scheme="dark")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert visit.violations("color-contrast") == [], state
        visit.shot(f"{view.__name__}-{state}-dark-{width}")
        page.emulate_media(color_scheme="light")
        expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_drawers_give_the_focus_back(visits: Callable[..., Visit], url: str) -> None:
    """On a narrow screen a panel opens with the focus in it, closes with Escape, and the focus is where it was."""
    page = visits(viewport={"width": 400, "height": 800}).go(f"{url}/#/chat")
    opener = page.get_by_role("button", name="Settings")
    opener.click()
    expect(opener).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("complementary", name="Settings").get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(page.get_by_label("System prompt")).not_to_be_visible()


def test_motion_is_reduced(visits: Callable[..., Visit], url: str) -> None:
    """Nothing moves for who asked for less motion."""
    page = visits(reduced_motion="reduce").go(f"{url}/#/chat")
    assert page.locator(".panel").first.evaluate("one => getComputedStyle(one).transitionDuration") == "0s"
