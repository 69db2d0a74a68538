"""The page's pure modules, each imported alone into a page in the browser."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.fakes import fake_context
from tests.views.conftest import visiting
from tests.views.served import served


@pytest.fixture(scope="module")
def page(chromium: Browser, shots: Path) -> Iterator[Page]:
    """The page, whose modules ``call`` imports."""
    with served(fake_context()) as service, visiting(chromium, shots) as make:
        yield make().go(f"{service.url}/")


def call(page: Page, module: str, expression: str, *arguments: Any) -> Any:
    """The value of an expression of ``m`` (the module) and ``a`` (the arguments)."""
    return page.evaluate(
        "async ([name, arguments_]) => { const folder = document.querySelector('script[src*=\"main.js\"]').src;"
        f"const m = await import(new URL(`${{name}}.js`, folder)); const a = arguments_; return {expression}; }}",
        [module, list(arguments)],
    )


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("data: a\n\n", ["a"]),
        ("data:a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        ("data: a\rdata: b\r\rdata: c\n\n", ["a\nb", "c"]),
        (": comment\nevent: x\nid: 1\nretry: 5\ndata\ndata:  two\n\n", ["\n two"]),
        ("\n\ndata: é😀\n\n", ["é😀"]),
        ("data: never ended", []),
        ("data: never ended\n", []),
        ("event: empty\n\n", []),
        ("﻿data: mark\n\n", ["mark"]),
    ],
)
def test_events_are_read_however_they_are_cut(page: Page, text: str, events: list[str]) -> None:
    """A stream gives the same events whole, byte by byte, and cut anywhere; line ends are LF, CR or CRLF."""
    read = """(async () => {
      const bytes = new TextEncoder().encode(a[0]);
      const all = [];
      for (const size of [1, 2, 3, bytes.length]) {
        const parts = [];
        for (let i = 0; i < bytes.length; i += size) parts.push(bytes.slice(i, i + size));
        const body = new ReadableStream({ start(c) { parts.forEach((part) => c.enqueue(part)); c.close(); } });
        const found = [];
        for await (const event of m.events(body)) found.push(event);
        all.push(found);
      }
      return all;
    })()"""
    assert call(page, "sse", read, text) == [events] * 4


def test_who_stops_reading_ends_the_stream(page: Page) -> None:
    """A reader that breaks off cancels what it read from."""
    read = """(async () => {
      let cancelled = false;
      const body = new ReadableStream({
        pull(c) { c.enqueue(new TextEncoder().encode("data: x\\n\\n")); },
        cancel() { cancelled = true; },
      });
      for await (const event of m.events(body)) break;
      return cancelled;
    })()"""
    assert call(page, "sse", read) is True


@pytest.mark.parametrize(
    ("probability", "level"), [(1, 4), (0.9001, 4), (0.89, 3), (0.61, 3), (0.31, 2), (0.11, 1), (0.09, 0), (1e-9, 0)]
)
def test_levels(page: Page, probability: float, level: int) -> None:
    """A probability has one of five levels."""
    assert call(page, "tokens", "m.level(Math.log(a[0]))", probability) == level


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1, "100 %"), (0.9996, "99.9 %"), (0.5, "50.0 %"), (0.0123, "1.2 %"), (0.001, "0.10 %"), (1e-9, "below 0.01 %")],
)
def test_percent(page: Page, probability: float, text: str) -> None:
    """A probability is written with the digits that matter."""
    assert call(page, "tokens", "m.percent(Math.log(a[0]))", probability) == text


def entry(content: bytes, name: str = "") -> dict[str, Any]:
    """A token as the service reports it."""
    return {"token": name, "logprob": -0.1, "bytes": list(content), "id": 0, "top_logprobs": []}


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("Hi there", [b"Hi", b" there", b"<|end|>"], ["Hi", " there"]),
        ("a😀b", [b"a", b"\xf0\x9f", b"\x98", b"\x80", b"b"], ["a", "😀", "b"]),
        ("one", [b"one", b" STOP"], ["one"]),
        ("one t", [b"one", b" two"], ["one", " t"]),
        ("other", [b"text"], ["other"]),
        ("", [b"<|end|>"], []),
        ("﻿x", ["﻿".encode(), b"x"], ["﻿", "x"]),
    ],
)
def test_pieces_join_to_the_text(page: Page, text: str, tokens: list[bytes], expected: list[str]) -> None:
    """Tokens are laid over the text; what ends it shows nowhere, and characters in several tokens stay whole."""
    found = call(page, "tokens", "m.pieces(a[0], a[1]).map((piece) => piece.text)", text, [entry(t) for t in tokens])
    assert found == expected
    assert "".join(found) == text


def test_meter(page: Page) -> None:
    """Time to first token counts from the start; the rate counts the tokens after the first."""
    measured = call(
        page,
        "meter",
        "(() => { let time = 0; const meter = new m.Meter(() => time); const none = [meter.firstToken, meter.rate()];"
        "time = 500; meter.add(1); const one = meter.rate(); time = 1500; meter.add(4);"
        "return [...none, one, meter.firstToken, meter.rate(), meter.rate(11)]; })()",
    )
    assert measured == [None, None, None, 0.5, 4, 10]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("m.seconds(0.1234)", "123 ms"),
        ("m.seconds(12.345)", "12.3 s"),
        ("m.seconds(null)", "\u2013"),
        ("m.bytes(1234567)", "1.23 MB"),
        ("m.bytes(12e9)", "12.0 GB"),
        ("m.describe({firstToken: 0.5, rate: 12, tokens: 3, tokensIn: 4, finish: 'length'}).join('; ')",
         "12.0 tokens/s; first token 500 ms; 4 tokens in, 3 out; cut at the token limit"),
        ("m.describe({firstToken: 0.5, rate: 9e9, tokens: 3, cache: {status: 'hit', age_seconds: 7}}).join('; ')",
         "from the cache, 7 s old; first token 500 ms; 3 tokens"),
    ],
)  # fmt: skip
def test_figures_are_written_for_people(page: Page, expression: str, text: str) -> None:
    """Units and digits are those that people read."""
    assert call(page, "meter", expression) == text


NASTY = {
    "messages": [{"role": "user", "content": 'it\'s "quoted" \\ $HOME `id` \n\t é 😀 </script>'}],
    "logprobs": True,
}


def test_curl_quotes_everything(page: Page) -> None:
    """Whatever is in a request, a shell takes it as one word, and the key is read from the environment."""
    command = call(page, "snippets", "m.curl(a[0], a[1], true)", "http://host/it's", NASTY)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["curl", "-sN", "http://host/it's"]
    assert json.loads(words[words.index("-d") + 1]) == NASTY
    assert "authorization: Bearer $API_KEY" in words


@pytest.mark.parametrize("value", [NASTY, {"a": [], "b": {}, "c": None, "d": [1, -2.5, True, False, {"e": "\u2028"}]}])
def test_python_literals(page: Page, value: Any) -> None:
    """A JSON value is written as the Python value that it is."""
    assert eval(call(page, "snippets", "m.literal(a[0])", value), {"__builtins__": {}}) == value


def test_fields_are_read_from_a_schema(page: Page) -> None:
    """Kind, range, default and help of a control come from the JSON schema of its field."""
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.9, "description": "Why."}
    optional = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None}
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}
    found = call(page, "schema", "a.map((property) => m.field('x', property))", number, optional, texts)
    assert [(field["kind"], field["optional"]) for field in found] == [
        ("number", False),
        ("integer", True),
        ("texts", True),
    ]
    assert (found[0]["above"], found[0]["maximum"], found[0]["default"], found[0]["help"]) == (0, 1, 0.9, "Why.")
    assert found[1]["minimum"] == 1


def stats(time: float, hits: int = 0, misses: int = 0) -> dict[str, Any]:
    """An answer of ``/stats``."""
    model = {"running": 1, "waiting": 2, "tokens_per_second": 3.5, "kv_usage": 0.25}
    return {
        "time": time,
        "models": [
            {"id": "a", **model, "time_to_first_token": {"p50": 0.1, "p95": 0.2}},
            {"id": "b", **model, "kv_usage": 0.5, "time_to_first_token": None},
        ],
        "cache": {"hits": hits, "shared": 0, "misses": misses, "rate": hits / ((hits + misses) or 1)},
        "memory": {"process_bytes": 7, "models_bytes": 5},
    }


def test_samples(page: Page) -> None:
    """Counts of several models are summed, of the rest the worst is shown; the recent hit rate looks a minute back."""
    found = call(page, "samples", "m.sample(a[1], '', a[0])", stats(1), stats(2, hits=1, misses=3))
    assert (found["running"], found["waiting"], found["rate"]) == (2, 4, 7)
    assert (found["firstMiddle"], found["firstWorst"], found["kv"]) == (0.1, 0.2, 0.5)
    assert (found["hits"], found["recentHits"]) == (0.25, 0.25)
    alone = call(page, "samples", "m.sample(a[0], 'b', a[0])", stats(1))
    assert (alone["running"], alone["firstMiddle"], alone["hits"], alone["recentHits"]) == (1, None, None, None)
    history = [{"time": time} for time in (0, 30, 50, 100, 110)]
    assert call(page, "samples", "m.tail(a[0], 4)", history) == {"time": 50}


@pytest.mark.parametrize(
    ("past", "text"),
    [(1, "just now"), (30, "30 s ago"), (600, "10 min ago"), (9000, "2 h ago"), (999999, "11 days ago")],
)
def test_ago(page: Page, past: float, text: str) -> None:
    """When something was is told in the unit that fits."""
    assert call(page, "model_card", "m.ago(1e6 - a[0], 1e6)", past) == text


def test_no_module_is_long_or_makes_html() -> None:
    """Modules stay small, and one alone turns text into HTML: through DOMPurify."""
    from tests.views.test_docs import WEB

    for module in (WEB / "page").glob("*.js"):
        text = module.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 210, module.name
        sinks = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc", text)
        assert sinks == (["innerHTML"] if module.name == "markdown.js" else []), module.name


def test_similarities(page: Page) -> None:
    """Cosines of all pairs; the least one of two different texts is the palest."""
    rows = call(page, "similarity", "m.matrix(a[0])", [[1, 0], [2, 2], [0, 0]])
    assert [[round(value, 4) for value in row] for row in rows] == [[1, 0.7071, 0], [0.7071, 1, 0], [0, 0, 0]]
    assert call(page, "similarity", "[0, 0.5, 1].map(m.scale(a[0]))", [[1, 0.5], [0.5, 1]]) == [0, 0, 1]
    assert call(page, "similarity", "[0.99, 1].map(m.scale(a[0]))", [[1, 1], [1, 1]]) == [0, 1]
    assert call(page, "similarity", "m.lines(a[0])", " a\n\nb \na") == ["a", "b"]
