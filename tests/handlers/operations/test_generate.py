"""handlers.operations.generate: prompt and continuation together. What complete shares with it is tested in
test_complete.
"""

from __future__ import annotations

from typing import Any

import pytest

from handlers.operations import generate
from handlers.schemas.responses import TextChunk, TextResponse
from runtime.errors import InvalidRequest
from tests.support.fakes import FakeEngine, fake_context, usage


async def test_answer() -> None:
    """The whole answer: the prompt stands before its continuation."""
    answer = await generate.handle({"prompt": "Say:"}, fake_context(FakeEngine(token_length=4)))
    assert answer == {
        "text": "Say:Hello there.",
        "sequences": [{"index": 0, "text": "Say:Hello there.", "finish_reason": "stop"}],
        "model": "fake",
        "usage": usage(4, 3),
    }
    TextResponse.model_validate(answer, extra="forbid", strict=True)


async def test_stream() -> None:
    """The prompt comes with a sequence's first piece; the usage comes last."""
    events = [event async for event in generate.stream({"prompt": "Say:"}, fake_context())]
    assert events == [
        {"index": 0, "text": "Say:Hello", "finish_reason": None},
        {"index": 0, "text": " there", "finish_reason": None},
        {"index": 0, "text": ".", "finish_reason": "stop"},
        {"model": "fake", "usage": usage(1, 3)},
    ]
    for event in events:
        TextChunk.model_validate(event, extra="forbid", strict=True)


async def test_every_sequence_has_its_own_prompt() -> None:
    """Index = prompt number x num_return_sequences + number within the prompt, and each has its prompt before it."""
    payload = {"prompt": ["A", "B"], "num_return_sequences": 2}
    answer = await generate.handle(payload, fake_context())
    assert [(s["index"], s["text"]) for s in answer["sequences"]] == [
        (0, "AHello there."),
        (1, "AHello there."),
        (2, "BHello there."),
        (3, "BHello there."),
    ]
    assert answer["text"] == "AHello there."
    assert answer["usage"] == usage(2, 12)


@pytest.mark.parametrize(
    "payload",
    [
        {"prompt": "A"},
        {"prompt": ["A", "B", "A"], "num_return_sequences": 3, "max_new_tokens": 2},
        {"prompt": "A", "max_new_tokens": 1},
    ],
)
@pytest.mark.parametrize("words", [("Hello", " there", "."), ("", "", "x"), ("x", "", ""), ("", "", "")])
async def test_streamed_pieces_join_to_the_answer(payload: dict[str, Any], words: tuple[str, ...]) -> None:
    """The pieces of each index, joined, are the whole answer's text, also when tokens release no text."""
    answer = await generate.handle(payload, fake_context(FakeEngine(words)))
    texts = ["" for _ in answer["sequences"]]
    reasons: list[str | None] = [None for _ in answer["sequences"]]
    *pieces, last = [event async for event in generate.stream(payload, fake_context(FakeEngine(words)))]
    for piece in pieces:
        assert reasons[piece["index"]] is None, "nothing comes after a sequence's end"
        texts[piece["index"]] += piece["text"]
        reasons[piece["index"]] = piece["finish_reason"]
    assert texts == [sequence["text"] for sequence in answer["sequences"]]
    assert reasons == [sequence["finish_reason"] for sequence in answer["sequences"]]
    assert last == {"model": answer["model"], "usage": answer["usage"]}


async def test_tokens_without_text_are_no_events() -> None:
    """A token that releases no text yet makes no event of its own."""
    engine = FakeEngine(words=("", "", "x", "", "y"))
    events = [event async for event in generate.stream({"prompt": "p"}, fake_context(engine))]
    assert [event.get("text") for event in events] == ["px", "y", None]


def test_wrong_request_fails_before_the_stream() -> None:
    """A wrong request fails when the stream is asked for, not when it is first read."""
    with pytest.raises(InvalidRequest, match="prompt: field required"):
        generate.stream({}, fake_context())


async def test_echo_is_not_its_field() -> None:
    """generate always repeats the prompt; it has no switch for that."""
    with pytest.raises(InvalidRequest, match="echo: unknown field"):
        await generate.handle({"prompt": "x", "echo": True}, fake_context())
