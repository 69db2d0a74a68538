"""Whatever a model, a model's name or an error says, the page shows it as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from playwright.sync_api import expect

from handlers.context import Context
from runtime.errors import ModelUnavailable
from runtime.status import ModelStatus
from tests.support.fakes import FakeEngine, FakeModels, fake_context
from tests.views.conftest import Visit
from tests.views.served import served

IMAGE = '<img src="https://evil.example/x.png" onerror="window.hurt=1">'
EVIL = (
    "<script>window.hurt=1</script>",
    "\n\n<script src='https://evil.example/x.js'></script>\n\n",
    IMAGE,
    " <svg/onload=window.hurt=1> ",
    "<iframe src='javascript:parent.hurt=1'></iframe>",
    "<style>body{display:none}</style>",
    "<form action='https://evil.example'><input name=a autofocus onfocus=window.hurt=1></form>",
    "\n\n[run](javascript:window.hurt=1) [data](data:text/html,<script>1</script>) ",
    "[blank](  java\tscript:window.hurt=1) <javascript:window.hurt=1> ",
    "![pixel](https://evil.example/pixel.png) ![again][ref] ",
    "[a link](https://good.example/there) [https://bank.example](https://evil.example/)",
    '\n\n[ref]: https://evil.example/ref.png "x\\" onload=\\"window.hurt=1"\n\n',
    "```html\n<script>window.hurt=1</script>\n```\n\n",
    "<math><mtext><table><mglyph><style><img src onerror=window.hurt=1></style></mglyph></table></mtext></math>",
    "<a href='javascript:window.hurt=1' style='position:fixed;inset:0'>click</a>",
)


@dataclass
class EvilModels(FakeModels):
    """A model whose name and reason are markup."""

    def status(self) -> list[ModelStatus]:
        return [replace(super().status()[0], id=IMAGE, state="failed", error=IMAGE)]


def serve(engine: FakeEngine, ctx: Context | None = None) -> Iterator[str]:
    with served(ctx or fake_context(engine)) as service:
        yield service.url


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    """A service whose model wants to hurt."""
    yield from serve(FakeEngine(words=EVIL))


def unhurt(visit: Visit) -> None:
    """Nothing ran, nothing was drawn, nothing was asked for."""
    visit.page.wait_for_timeout(300)  # what an onerror would need
    assert visit.page.evaluate("window.hurt") is None
    assert (
        visit.page.locator("main :is(img, iframe, script, style, svg, object, embed, form:not(.composer))").count() == 0
    )
    assert visit.page.locator("[onerror], [onload], [onfocus], main [style*=fixed]").count() == 0
    assert [r.url for r in visit.requests if "evil" in r.url or "good.example" in r.url] == []


@pytest.mark.parametrize("colours", [False, True], ids=["markdown", "tokens"])
def test_what_a_model_says(visit: Visit, evil: str, colours: bool) -> None:
    """Scripts, images, frames and addresses with code in them are shown as they were written, and do nothing."""
    page = visit.go(f"{evil}/#/chat")
    if colours:
        page.get_by_label("Colour tokens by probability").check()
    page.get_by_label("Your message").fill("<script>window.hurt=1</script>" + IMAGE)
    page.keyboard.press("Enter")
    visit.answered()
    unhurt(visit)
    answer = page.locator(".turn.assistant .said")
    expect(answer).to_contain_text("<script>window.hurt=1</script>")
    expect(answer).to_contain_text("onerror")
    expect(page.locator(".turn.user")).to_contain_text("<script>")
    if not colours:
        hrefs = answer.locator("a[href]").evaluate_all("links => links.map((a) => [a.getAttribute('href'), a.rel])")
        assert {href for href, _ in hrefs} == {"https://good.example/there", "https://evil.example/"}
        assert all("noopener" in rel and "noreferrer" in rel for _, rel in hrefs)
        expect(answer).to_contain_text("https://bank.example (https://evil.example/)")
        expect(answer).to_contain_text("[image: pixel]")
    page.reload()  # and again, from the history
    page.locator(".history .chat").first.click()
    expect(page.locator(".turn.assistant .said")).to_contain_text("onerror")
    unhurt(visit)


@pytest.mark.parametrize("view", ["complete", "compare"])
def test_what_a_model_says_elsewhere(visit: Visit, evil: str, view: str) -> None:
    """A completion and a comparison show text as it is."""
    page = visit.go(f"{evil}/#/{view}")
    page.get_by_role("textbox", name="Prompt").first.fill(IMAGE)
    if view == "compare":
        page.locator(".variant").nth(1).wait_for()
    page.keyboard.press("Control+Enter")
    expect(page.locator("main")).to_contain_text("onfocus=window.hurt=1")
    visit.answered()
    unhurt(visit)


def test_names_and_reasons(visit: Visit) -> None:
    """A model's id and the reason why it failed are text in the menus, the cards and the line at the top."""
    models = EvilModels(failure=ModelUnavailable(IMAGE))
    for url in serve(FakeEngine(), replace(fake_context(), models=models)):
        page = visit.go(f"{url}/#/models")
        expect(page.get_by_role("heading", name=IMAGE)).to_be_visible()
        expect(page.locator(".reason")).to_have_text(IMAGE)
        expect(page.locator("#banner")).to_contain_text(IMAGE)
        unhurt(visit)
        page.goto(f"{url}/#/chat")
        expect(page.get_by_label("Model").locator("option").last).to_have_text(IMAGE)
        page.get_by_label("Your message").fill("Hi")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(IMAGE)
        unhurt(visit)
        page.close()  # before its service
        assert [text for text in visit.complaints if "503" not in text] == []
        visit.complaints.clear()
