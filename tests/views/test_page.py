"""The page's views on a fake model, and what they do when things go wrong. The real model is in test_page_real.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from runtime.answer_format import AnswerFormat
from runtime.errors import ModelLoading, TooManyRequests
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import INFO, FakeEngine, FakeModels, fake_context
from tests.support.waiting import wait_until
from tests.views.conftest import Visit
from tests.views.served import Served, served

WORDS = ("One", " two", " three", " four", ".")
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
TIME = {"type": "function", "function": {"name": "time", "parameters": {"properties": {"zone": {"type": "string"}}}}}
LONG = WORDS * 200  # an answer that does not end by itself before something ends it


@pytest.fixture
def engine() -> FakeEncoder:
    """What answers."""
    return FakeEncoder(words=WORDS)


@pytest.fixture
def models(engine: FakeEngine) -> FakeModels:
    """The models of the service."""
    return FakeModels(engine)


@pytest.fixture
def service(models: FakeModels) -> Iterator[Served]:
    """The service, at its root and below a prefix that a proxy would strip."""
    with served(replace(fake_context(), models=models), "/below") as found:
        yield found


@pytest.fixture
def visits(service: Served, visits: Callable[..., Visit]) -> Callable[..., Visit]:
    """The visits, whose pages are closed before the service is."""
    return visits


@pytest.fixture
def chat(visit: Visit, service: Served) -> Page:
    """The chat view."""
    return visit.go(f"{service.url}/#/chat")


def send(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    page.get_by_label("Your message", exact=True).last.fill(text)
    page.keyboard.press("Enter")


def asked(engine: FakeEngine) -> list[list[tuple[str, str]]]:
    """The chats that the model was given."""
    return [[(message.role, message.content) for message in chat] for chat in engine.chats]


def forgive(visit: Visit, *statuses: int) -> None:
    """The browser itself reports refused requests on the console; nothing else may be there."""
    expected = [f"status of {status}" for status in statuses] + ["net::ERR_"]
    assert [text for text in visit.complaints if not any(part in text for part in expected)] == []
    visit.complaints.clear()


def test_a_chat(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """A question is answered as it streams; the next one carries the chat so far and the system prompt."""
    chat.get_by_label("System prompt").fill("Count.")
    send(chat, "Hello")
    visit.answered()
    answer = chat.locator(".turn.assistant")
    expect(answer.locator(".markdown")).to_have_text("One two three four.")
    expect(answer.locator(".notes")).to_contain_text("1 token in, 5 out")
    expect(answer.locator(".notes")).to_contain_text("first token")
    send(chat, "More")
    visit.answered(2)
    assert asked(engine)[-1] == [
        ("system", "Count."),
        ("user", "Hello"),
        ("assistant", "One two three four."),
        ("user", "More"),
    ]
    expect(chat.locator("#said")).to_have_text("One two three four.")  # told once, whole
    expect(chat.get_by_label("Your message")).to_be_focused()


def test_reasoning(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """The reasoning before an answer folds away above it, goes back to the model, and is there again with the chat."""
    engine.answer_format = AnswerFormat(reasoning="optional", visible={"<think>": 0, "</think>": 2})
    engine.words = ("<think>", "Hm, **two**.", "</think>", "Hi.")
    send(chat, "Hello")
    visit.answered()
    for _ in range(2):
        expect(chat.locator(".turn.assistant .markdown")).to_have_text("Hi.")
        thought = chat.get_by_text("Hm, **two**.")
        expect(thought).to_be_hidden()
        chat.locator(".turn.assistant summary").click()
        expect(thought).to_be_visible()
        assert visit.violations() == []
        chat.reload()
        chat.locator(".history").get_by_role("button", name="Hello", exact=True).click()
    send(chat, "More")
    visit.answered(2)
    assert engine.chats[-1][1].reasoning == "Hm, **two**."


def test_calls(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """Functions are written in the settings; a call is shown, its result is given in a field, and the model goes on."""
    engine.words = CALL
    chat.get_by_label("Tools", exact=True).fill(json.dumps([TIME]))
    send(chat, "Time?")
    visit.answered()
    call = chat.locator(".turn.assistant .call")
    expect(call).to_have_text('Calls time{\n  "zone": "UTC"\n}')
    expect(chat.locator(".turn.assistant .markdown")).to_have_text("I look.")
    expect(chat.locator("#said")).to_contain_text("Calls time.")
    assert [tool.name for tool in engine.tools[-1]] == ["time"]
    assert visit.violations() == []
    engine.words = ("Noon.",)
    chat.get_by_label("Result of time").fill("12:00")
    chat.get_by_role("button", name="Send the result").click()
    visit.answered(2)
    assert [message.role for message in engine.chats[-1]] == ["user", "assistant", "tool"]
    (made,) = engine.chats[-1][1].tool_calls
    assert (made.name, json.loads(made.arguments), made.id) == (
        "time",
        {"zone": "UTC"},
        engine.chats[-1][2].tool_call_id,
    )
    expect(chat.locator(".turn.tool")).to_have_text("Result of time12:00")
    expect(chat.locator(".turn.assistant").last).to_contain_text("Noon.")
    chat.reload()
    chat.locator(".history").get_by_role("button", name="Time?", exact=True).click()
    expect(call).to_contain_text("zone")
    chat.get_by_label("Result of time").fill("13:00")
    chat.get_by_role("button", name="Send the result").click()
    expect(chat.locator(".turn.tool")).to_have_text("Result of time13:00")
    visit.answered(2)
    assert [message.content for message in engine.chats[-1]][2:] == ["13:00"]


def test_settings_that_are_json(chat: Page, engine: FakeEngine) -> None:
    """A setting that is an object or a list is written as JSON, and nothing is sent while it is none."""
    tools = chat.get_by_label("Tools", exact=True)
    tools.fill("[{")
    send(chat, "Hello")
    expect(chat.locator("#said")).to_have_text("A setting is out of range.")
    assert tools.evaluate("input => input.validationMessage") == "This is not JSON."
    assert engine.chats == []


def test_stop_keeps_what_came(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """Stop ends the answer, on the page and in the engine; what had come stays, and the chat goes on with it."""
    engine.words, engine.pause = LONG, 0.2
    send(chat, "Hello")
    expect(chat.locator(".turn.assistant .said")).to_contain_text("One")
    chat.get_by_role("button", name="Stop").click()
    visit.answered()
    expect(chat.locator(".turn.assistant .notes")).to_contain_text("stopped")
    expect(chat.get_by_role("button", name="Send")).to_be_visible()
    partial = chat.locator(".turn.assistant .markdown").inner_text()
    assert "".join(LONG).startswith(partial)
    wait_until(lambda: engine.open_streams == 0, 30)
    engine.words, engine.pause = WORDS, 0
    send(chat, "Go on")
    visit.answered(2)
    assert asked(engine)[-1][1] == ("assistant", partial)


def test_regenerate_and_edit(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """An answer can be had again; an edited message replaces itself and all that came after it."""
    for number, text in enumerate(("First", "Second"), 1):
        send(chat, text)
        visit.answered(number)
    chat.get_by_role("button", name="Regenerate").last.click()
    chat.wait_for_function("document.querySelectorAll('.turn').length === 4")
    visit.answered(2)
    assert asked(engine)[-1] == asked(engine)[-2]
    chat.get_by_role("button", name="Edit this message").first.click()
    expect(chat.locator(".turn textarea")).to_be_focused()
    chat.keyboard.press("Escape")
    expect(chat.locator(".turn")).to_have_count(4)
    chat.get_by_role("button", name="Edit this message").first.click()
    chat.locator(".turn textarea").fill("Changed")
    chat.keyboard.press("Enter")
    expect(chat.locator(".turn")).to_have_count(2)
    visit.answered()
    assert asked(engine)[-1] == [("user", "Changed")]


def test_history_stays_in_the_browser(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """Chats outlast a reload, can be opened, continued and deleted, and lie in localStorage only."""
    send(chat, "Remember me")
    visit.answered()
    chat.get_by_role("button", name="New chat", exact=True).click()
    expect(chat.locator(".turn")).to_have_count(0)
    send(chat, "Another")
    visit.answered()
    chat.reload()
    expect(chat.locator(".history .chat")).to_have_text(["Another", "Remember me"])
    chat.get_by_role("button", name="Remember me", exact=True).click()
    expect(chat.locator(".turn.assistant")).to_contain_text("One two three four.")
    send(chat, "And now?")
    visit.answered(2)
    assert asked(engine)[-1][0] == ("user", "Remember me")
    assert len(json.loads(chat.evaluate("localStorage['warmstart.chats']"))) == 2
    chat.get_by_role("button", name="Delete the chat Another").click()
    expect(chat.locator(".history .chat")).to_have_count(1)
    chat.get_by_role("button", name="Delete all").click()
    expect(chat.locator(".history .chat")).to_have_count(0)
    assert visit.dialogs == ["Delete all chats from this browser?"]
    visit.dialogs.clear()
    assert "Remember" not in chat.evaluate("JSON.stringify(localStorage)")


def test_a_damaged_history_is_no_obstacle(chat: Page) -> None:
    """What cannot be read is as if it were not there."""
    for damaged in ("not json", "{}", '[{"id": 1}, null]'):
        chat.evaluate("text => localStorage.setItem('warmstart.chats', text)", damaged)
        chat.reload()
        expect(chat.get_by_role("heading", name="Ask something")).to_be_visible()


def test_controls_come_from_the_schema(visit: Visit, chat: Page, service: Served, engine: FakeEngine) -> None:
    """Each sampling field of the description has a control with its range, default and help; what is set is sent."""
    document = chat.request.get(f"{service.url}/openapi.json").json()
    properties = document["components"]["schemas"]["ChatRequest"]["properties"]
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "min_tokens"):
        row = chat.locator(f'.panel:not(.history) [data-name="{name}"]')
        control, schema = row.locator("input[type=number]"), properties[name]
        schema |= schema["anyOf"][0]  # null is the other one
        assert float(control.input_value()) == schema["default"]
        assert float(control.get_attribute("max") or 0) == schema["maximum"]
        assert float(control.get_attribute("min") or 0) == schema.get("minimum", schema.get("exclusiveMinimum"))
        expect(row).to_contain_text(schema["description"])
    chat.get_by_role("spinbutton", name="Temperature").fill("0")
    chat.get_by_role("spinbutton", name="Seed").fill("7")
    chat.get_by_label("Stop", exact=True).fill("x\nyy")
    chat.get_by_label("Logit bias").fill("3 = -100")
    send(chat, "Hello")
    visit.answered()
    params = engine.jobs[-1][0].params
    assert (params.temperature, params.seed, params.stop, params.logit_bias) == (0, 7, ("x", "yy"), ((3, -100.0),))
    body = json.loads([r for r in visit.requests if r.method == "POST"][-1].post_data or "")
    assert "top_p" not in body  # what is the default is not sent
    chat.reload()
    expect(chat.get_by_role("spinbutton", name="Seed")).to_have_value("7")
    chat.get_by_role("button", name="Reset to defaults").click()
    expect(chat.get_by_role("spinbutton", name="Temperature")).to_have_value("1")


def test_a_value_out_of_range_is_not_sent(visit: Visit, chat: Page) -> None:
    """The page says which control is wrong, and asks the service nothing."""
    for name, value in (("Temperature", "2.5"), ("Top p", "1.5"), ("Top k", "1.5")):
        control = chat.get_by_role("spinbutton", name=name)
        right = control.input_value()
        control.fill(value)
        send(chat, "Hello")
        expect(control).to_be_focused()
        expect(chat.locator("#said")).to_have_text("A setting is out of range.")
        control.fill(right)
    assert [request for request in visit.requests if request.method == "POST"] == []


def test_probabilities(visit: Visit, chat: Page) -> None:
    """Tokens show how likely they were in colour and line, and on hover or focus what else might have come."""
    chat.get_by_label("Colour tokens by probability").check()
    send(chat, "Hello")
    visit.answered()
    tokens = chat.locator(".turn .token[role=option]")
    expect(tokens).to_have_text(list(WORDS))
    # The fake's log-probabilities are -1/4, -2/4, ...: 78, 61, 47, 37, 29 %.
    assert [name.split()[1] for name in tokens.evaluate_all("all => all.map((one) => one.className)")] == [
        "level3",
        "level3",
        "level2",
        "level2",
        "level1",
    ]
    lines = tokens.evaluate_all("all => all.map((one) => getComputedStyle(one).textDecorationStyle)")
    assert lines == ["dotted", "dotted", "dashed", "dashed", "solid"]
    tip = chat.get_by_role("tooltip")
    tokens.nth(2).hover()
    expect(tip).to_contain_text("47.2 %")
    expect(tip.locator("li")).to_have_count(5)
    expect(tip.locator("li.chosen")).to_contain_text("three")
    chat.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    chat.locator(".legend").last.hover()
    tokens.first.focus()
    expect(tip).to_contain_text("77.9 %")
    chat.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tip).to_contain_text("60.7 %")
    chat.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    expect(tokens.last).to_have_attribute("aria-label", "., 28.7 %")
    expect(chat.locator(".turn .token[tabindex='0']")).to_have_count(1)  # one stop for the Tab key


def test_the_key_is_kept_for_the_tab_only(visit: Visit, chat: Page) -> None:
    """A key goes with every request as a bearer token, is in no storage but the tab's, and can be forgotten."""
    chat.get_by_role("button", name="API key").click()
    expect(chat.get_by_role("dialog")).to_be_visible()
    chat.get_by_label("Key", exact=True).fill("s3cret")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("dialog")).to_be_hidden()
    send(chat, "Hello")
    visit.answered()
    posts = [request for request in visit.requests if request.method == "POST"]
    assert posts[-1].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in chat.evaluate("JSON.stringify(localStorage) + document.cookie")
    chat.get_by_role("button", name="Show request").click()
    expect(chat.locator("dialog[open] pre").first).to_contain_text("Bearer $API_KEY")
    assert "s3cret" not in chat.locator("dialog[open]").inner_text()
    chat.keyboard.press("Escape")
    chat.get_by_role("button", name="API key").click()
    chat.get_by_role("button", name="Forget it").click()
    assert chat.evaluate("sessionStorage.length") == 0


def test_a_service_that_asks_for_keys(visit: Visit, models: FakeModels) -> None:
    """With OPEN_PAGES the page comes without a key and asks for one; with it, everything it shows is there."""
    key = new_key()
    record = KeyRecord(Caller("k_page", "page", frozenset({"*"})), 0, None, digest(key))
    with served(replace(fake_context(), models=models), api_keys=record.line(), open_pages=True) as service:
        page = visit.go(f"{service.url}/#/chat")
        send(page, "Hello")
        expect(page.locator("[role=alert]").first).to_contain_text("Set the API key with the button at the top.")
        page.get_by_role("button", name="API key").click()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        send(page, "Hello again")
        expect(page.locator(".turn .markdown").last).to_have_text("One two three four.")
        page.goto(f"{service.url}/#/models")
        expect(page.get_by_role("heading", name="fake")).to_be_visible()
        page.close()  # before its service
    forgive(visit, 401)


def test_a_full_queue_is_waited_for(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """429 with Retry-After: the page says so, waits as long as it was told, and then has the answer."""
    engine.fail_after, engine.failure = 0, TooManyRequests("the queue is full", retry_after=1)
    send(chat, "Hello")
    expect(chat.locator(".turn .notes")).to_contain_text("the queue is full. Trying again in 1 s.")
    engine.fail_after = None
    expect(chat.locator(".turn .markdown")).to_have_text("One two three four.")
    forgive(visit, 429)


def test_a_wait_can_be_stopped(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """Stop ends the waiting, too, and nothing is sent afterwards."""
    engine.fail_after, engine.failure = 0, TooManyRequests("the queue is full", retry_after=50)
    send(chat, "Hello")
    expect(chat.locator(".turn .notes")).to_contain_text("Trying again in")
    chat.get_by_role("button", name="Stop").click()
    expect(chat.locator(".turn .notes")).to_have_text("stopped")
    assert len(engine.jobs) == 1
    forgive(visit, 429)


def test_a_loading_model_is_shown_and_waited_for(visit: Visit, models: FakeModels, service: Served) -> None:
    """While the model loads the page tells how far it is; a question asked meanwhile is answered when it is ready."""
    models.ready, models.stage, models.progress = False, "weights", 0.4
    models.failure = ModelLoading("fake is loading", retry_after=1)
    page = visit.go(f"{service.url}/")
    expect(page.locator("#banner")).to_contain_text("fake is loading: weights 40 %")
    expect(page.locator("#banner progress")).to_have_attribute("value", "0.4")
    send(page, "Hello")
    expect(page.locator(".turn .notes")).to_contain_text("Trying again in")
    visit.shot("loading")
    models.ready, models.failure = True, None
    expect(page.locator(".turn .markdown")).to_have_text("One two three four.")
    expect(page.locator("#banner")).to_be_hidden()
    forgive(visit, 503)


def test_what_the_service_refuses(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """A 400 is shown where the answer would be, with what to do; the question is still there to be edited."""
    engine.info = replace(INFO, context_length=1)
    send(chat, "Hello")
    alert = chat.get_by_role("alert")
    expect(alert).to_contain_text("Shorten the text")
    visit.shot("refused")
    engine.info = INFO
    alert.get_by_role("button", name="Try again").click()
    expect(chat.locator(".turn .markdown")).to_have_text("One two three four.")
    expect(chat.get_by_role("alert")).to_have_count(0)
    forgive(visit, 400)


def test_an_error_in_mid_stream(visit: Visit, chat: Page, engine: FakeEngine) -> None:
    """What had come stays on the page beside the error, and is part of the chat."""
    engine.fail_after = 3
    send(chat, "Hello")
    expect(chat.get_by_role("alert")).to_contain_text("planted")
    expect(chat.locator(".turn .markdown")).to_have_text("One two three")
    engine.fail_after = None
    send(chat, "Go on")
    visit.answered(2)
    assert asked(engine)[-1][1] == ("assistant", "One two three")


def test_a_service_that_is_gone(visit: Visit, chat: Page, engine: FakeEngine, service: Served) -> None:
    """The connection breaks while an answer streams: it is kept, and the page says that nobody answers."""
    engine.words, engine.pause = LONG, 0.2
    send(chat, "Hello")
    expect(chat.locator(".turn.assistant .said")).to_contain_text("One")
    service.stop()
    expect(chat.get_by_role("alert").filter(has_text="The connection was lost")).to_be_visible()
    expect(chat.locator(".turn.assistant .markdown")).to_contain_text("One")
    send(chat, "Anyone?")
    expect(chat.get_by_role("alert").last).to_contain_text("The service does not answer.")
    visit.shot("gone")
    visit.page.close()  # or it would go on asking
    forgive(visit)


def test_similarities(visit: Visit, service: Served, engine: FakeEncoder) -> None:
    """A few texts become a coloured table; a mistake is told where it was made, and shown as a request."""
    page = visit.go(f"{service.url}/#/embed")
    field = page.get_by_label("Texts, one per line")
    field.fill("abc\n\nabc\n")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("between 2 and 16")
    field.fill("abc\ncba\nx")
    page.keyboard.press("Control+Enter")
    cells = page.locator(".heat tbody td")
    expect(cells).to_have_count(9)
    expect(cells.nth(1)).to_have_text("1.00")  # the same letters
    shares = cells.evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--share')))")
    assert shares[0] == shares[1] == 1
    assert shares[2] == min(shares) == 0
    expect(page.locator(".notes")).to_contain_text("fake · 4 dimensions · 13 tokens")
    assert [len(batch) for batch in engine.embedded] == [3]
    page.get_by_role("button", name="Show request").click()
    expect(page.locator(".snippet").last).to_contain_text('entry["embedding"]')


def test_menus_list_what_suits(visit: Visit, service: Served, engine: FakeEncoder) -> None:
    """A model that is only an encoder is offered for similarities, and not for a chat."""
    engine.info = replace(engine.info, generates=False)
    page = visit.go(f"{service.url}/#/chat")
    expect(page.get_by_label("Model", exact=True)).to_have_text("None is served")
    page.get_by_role("link", name="Embed", exact=True).click()
    expect(page.locator("#view-embed").get_by_label("Model", exact=True)).to_contain_text("Default (fake)")


def test_below_a_prefix(visit: Visit, service: Served) -> None:
    """Where a proxy strips a prefix, the page asks for nothing outside of it."""
    page = visit.go(f"{service.url}/below/")
    send(page, "Hello")
    visit.answered()
    for view in ("Models", "Live", "Compare", "Embed"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("heading", name=view, level=1)).to_be_focused()
    urls = [request.url for request in visit.requests if request.url != "about:blank"]
    assert [url for url in urls if not url.startswith((f"{service.url}/below/", "data:"))] == []


def test_views_have_addresses(visit: Visit, service: Served) -> None:
    """Each view can be linked to, the browser's way back works, and an unknown address is the chat."""
    page = visit.go(f"{service.url}/#/models")
    expect(page.locator("nav [aria-current=page]")).to_have_text("Models")
    page.get_by_role("link", name="Live", exact=True).click()
    expect(page).to_have_title("Live · Warmstart")
    page.go_back()
    expect(page).to_have_title("Models · Warmstart")
    visit.go(f"{service.url}/#/nothing")
    expect(page).to_have_title("Chat · Warmstart")


def test_charts_pause_when_nobody_looks(visit: Visit, service: Served) -> None:
    """Figures are asked for while the live view is shown; in another view, or a hidden tab, they are not."""
    visit.page.clock.install()
    page = visit.go(f"{service.url}/#/live")
    expect(page.locator(".chart")).to_have_count(6)
    expect(page.locator(".chart canvas")).to_have_count(6)
    page.locator("summary").first.click()

    def polls(action: Callable[[], Any]) -> int:
        """How often they are asked for within ten seconds of the page's clock after an action."""
        action()
        settle()  # one that was sent before the action took effect is not counted
        before = asked_for()
        for _ in range(10):
            page.clock.run_for(1000)
            settle()
        return asked_for() - before

    def settle() -> None:
        """Waits until a request that the page has sent is answered and reported here."""
        page.wait_for_function("fetch('livez').then((answer) => answer.ok)")

    def leave() -> None:
        page.get_by_role("link", name="Complete", exact=True).click()
        expect(page).to_have_title("Complete · Warmstart")  # the page learns of its new address after the click

    def asked_for() -> int:
        return len([request for request in visit.requests if request.url.endswith("/stats")])

    hide = "value => { Object.defineProperty(document, 'hidden', { value, configurable: true });"
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    assert polls(lambda: None) > 0
    expect(page.locator(".chart tbody tr").nth(2)).to_be_visible()
    assert polls(lambda: page.evaluate(hide, True)) == 0
    assert polls(lambda: page.evaluate(hide, False)) > 0
    assert polls(leave) == 0


def test_the_theme_can_be_chosen(visits: Callable[..., Visit], service: Served) -> None:
    """The system's choice holds until somebody makes another, which is remembered."""
    visit = visits(color_scheme="dark")
    page = visit.go(f"{service.url}/")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Light colours").click()
    expect(root).to_have_attribute("data-theme", "light")
    page.reload()
    expect(root).to_have_attribute("data-theme", "light")


def test_keyboard_alone(visit: Visit, service: Served) -> None:
    """From the top, the Tab key reaches the skip link, the views and the composer; Enter uses them."""
    page = visit.go(f"{service.url}/")
    page.get_by_role("heading", name="Ask something").wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.get_by_label("Your message").evaluate("element => element === document.activeElement"):
            break
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    visit.answered()
    expect(page.locator(".turn.assistant .markdown")).to_have_text("One two three four.")
