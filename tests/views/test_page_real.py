"""Each view of the page does its job on the real service with the embedded model, and its snippets run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from loadtests.service import running_service
from tests.support.models import save_tiny_llama
from tests.views.conftest import Visit

pytestmark = pytest.mark.slow

FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service with the embedded model, and a tiny one that is not loaded."""
    tiny = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    with running_service(MODELS=str(tiny), LOG_FORMAT="json", KV_CACHE_BYTES=str(2**28)) as service:
        service.wait("/readyz")
        yield service.url


def greedy(page: Page) -> None:
    """Ask for the likeliest answer."""
    page.get_by_role("spinbutton", name="Temperature").first.fill("0")


def test_chat(visit: Visit, url: str) -> None:
    """The model answers with its figures; asked the same again, the answer is from the cache, and both say Paris."""
    page = visit.go(f"{url}/#/chat")
    greedy(page)
    page.get_by_label("Colour tokens by probability").check()
    page.get_by_role("button", name=FRANCE).click()
    visit.answered()
    answer = page.locator(".turn.assistant")
    expect(answer.locator(".tokens")).to_have_text("The capital of France is Paris.")
    expect(answer.locator(".who")).to_have_text("smollm2-135m-instruct")
    expect(answer.locator(".notes")).to_contain_text("8 out")
    page.locator(".token[role=option]", has_text="Paris").hover()
    expect(page.get_by_role("tooltip").locator("li")).to_have_count(5)
    visit.shot("real-chat")
    page.get_by_role("button", name="Regenerate").click()
    expect(answer.locator(".notes")).to_contain_text("from the cache")
    expect(answer.locator(".tokens")).to_have_text("The capital of France is Paris.")


def test_stop(visit: Visit, url: str) -> None:
    """A long answer is stopped, and the service is free again."""
    page = visit.go(f"{url}/#/chat")
    page.get_by_role("spinbutton", name="Min tokens").fill("4000")
    page.get_by_label("Your message").fill("Tell me a story.")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .notes")).to_contain_text("tokens/s")
    page.keyboard.press("Escape")
    visit.answered()
    expect(page.locator(".turn .notes")).to_contain_text("stopped")
    page.wait_for_function("async () => (await (await fetch('stats')).json()).total.running === 0")


def test_complete(visit: Visit, url: str) -> None:
    """A raw prompt is continued."""
    page = visit.go(f"{url}/#/complete")
    greedy(page)
    page.get_by_label("Max new tokens").fill("4")
    page.get_by_role("textbox", name="Prompt").fill("The capital of France is")
    page.keyboard.press("Control+Enter")
    visit.answered()
    expect(page.locator(".result")).to_contain_text("Paris")
    expect(page.locator(".result .notes")).to_contain_text("4 out")
    visit.shot("real-complete")


def test_compare(visit: Visit, url: str) -> None:
    """Two settings and two models answer side by side; figures and mean log-probabilities follow."""
    page = visit.go(f"{url}/#/compare")
    greedy(page)
    page.get_by_label("Max new tokens").first.fill("24")
    page.get_by_role("button", name="Add a variant").click()
    second = page.get_by_role("region", name="Variant B")
    second.locator("summary").click()
    second.get_by_label("Temperature").fill("1.5")
    second.get_by_label("Seed").fill("1")
    expect(second.locator("summary")).to_contain_text("temperature 1.5, seed 1")
    page.get_by_role("region", name="Variant C").get_by_label("Model").select_option("tiny-llama")
    page.get_by_label("Prompt for all").fill(FRANCE)
    page.keyboard.press("Control+Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    visit.answered(3)
    expect(page.get_by_role("region", name="Variant A").locator(".answer")).to_contain_text("Paris")
    heads = page.locator("thead th").all_inner_texts()
    assert heads[-2:] == ["Mean log-prob. under smollm2-135m-instruct", "Mean log-prob. under tiny-llama"]
    cells = rows.first.locator("td").all_inner_texts()
    assert cells[0] == "smollm2-135m-instruct"
    assert -1 < float(cells[-2]) < 0 > float(cells[-1])
    assert rows.last.locator("td").first.inner_text() == "tiny-llama"
    visit.shot("real-compare")


def test_models(visit: Visit, url: str) -> None:
    """A model is loaded, made the default, answers, and is unloaded; the other is the default again."""
    page = visit.go(f"{url}/#/models")
    tiny = page.get_by_role("article", name="tiny-llama")
    big = page.get_by_role("article", name="smollm2-135m-instruct")
    expect(big.locator(".state")).to_have_text("ready")
    expect(tiny.locator(".state")).to_be_visible()
    if tiny.get_by_role("button", name="Unload").is_visible():  # the comparison has loaded it
        tiny.get_by_role("button", name="Unload").click()
    expect(tiny.locator(".state")).to_have_text("not loaded")
    tiny.get_by_role("button", name="Load", exact=True).click()
    expect(tiny.locator(".state")).to_have_text("ready")
    expect(page.locator("#said")).to_have_text("tiny-llama is ready.")
    tiny.get_by_role("button", name="Make default").click()
    expect(tiny.locator(".marks")).to_have_text("default")
    expect(big.locator(".marks")).to_have_text("")
    visit.shot("real-models")
    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_label("Max tokens").fill("4")
    page.get_by_label("Your message").fill("Hi")
    page.keyboard.press("Enter")
    visit.answered()
    expect(page.locator(".turn.assistant .who")).to_have_text("tiny-llama")
    page.get_by_role("link", name="Models", exact=True).click()
    big.get_by_role("button", name="Make default").click()
    expect(big.locator(".marks")).to_have_text("default")
    tiny.get_by_role("button", name="Unload").click()
    expect(tiny.locator(".state")).to_have_text("not loaded")


def test_live(visit: Visit, url: str) -> None:
    """Charts show what the model does now, and the same stands in their tables."""
    page = visit.go(f"{url}/#/chat")
    page.get_by_role("spinbutton", name="Min tokens").fill("4000")
    page.get_by_label("Your message").fill("Tell me a story.")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .notes")).to_contain_text("tokens/s")
    page.get_by_role("link", name="Live", exact=True).click()
    requests = page.get_by_role("region", name="Requests")
    expect(requests.locator(".keys b").first).to_have_text("1")
    speed = page.get_by_role("region", name="Tokens per second")
    page.wait_for_function("Number(document.querySelectorAll('.chart .keys b')[2].textContent) > 0")
    speed.locator("summary").click()
    expect(speed.locator("tbody tr").nth(1)).to_be_visible()
    visit.shot("real-live")
    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    visit.answered()


@pytest.mark.parametrize("view", ["chat", "complete", "compare"])
@pytest.mark.parametrize("key", ["", "a key"], ids=["no-key", "key"])
def test_snippets_run(visit: Visit, url: str, view: str, key: str, tmp_path: Path) -> None:
    """The request as curl and as Python, as the page shows them, get an answer from a shell and from Python."""
    page = visit.go(f"{url}/#/{view}")
    page.get_by_label("Model").first.wait_for()
    greedy(page)
    page.get_by_label("Max tokens" if view == "chat" else "Max new tokens").first.fill("16")
    if key:
        page.evaluate("key => sessionStorage.setItem('warmstart.key', key)", key)
    field = page.get_by_label("Your message") if view == "chat" else page.get_by_role("textbox", name="Prompt").first
    field.fill(f"It's here: $HOME `id` \"\\\n{FRANCE}" if view == "complete" else FRANCE)
    page.get_by_role("button", name="Show request").click()
    for language in ("Python", "curl"):
        section = page.get_by_role("region", name=f"as {language}")
        code = section.locator("code").inner_text()
        assert ("API_KEY" in code) == bool(key)
        (tmp_path / "code").write_text(code, encoding="utf-8")
        if language == "curl" and shutil.which("curl") is None:
            assert shlex.split(code.replace("\\\n", " "))[0] == "curl"
            pytest.skip("THE CURL SNIPPET IS NOT RUN: run `apt-get install curl`")
        command = ["bash" if language == "curl" else sys.executable, str(tmp_path / "code")]
        environment = os.environ | {"API_KEY": key, "no_proxy": "*"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), language
        if view != "complete":
            assert "Paris" in done.stdout, language
        assert len(done.stdout.strip()) > 3, language
