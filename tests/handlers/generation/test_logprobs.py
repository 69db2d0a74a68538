"""handlers.generation.logprobs: log-probabilities in answers and streams, every token once and in order."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from handlers.generation.logprobs import TextOffsets, columns, entries
from handlers.operations import chat, complete, generate
from handlers.schemas.responses import ChatChunk, ChatResponse, TextChunk, TextResponse
from runtime.types import Job, Token
from tests.support.fakes import FakeEngine, fake_context

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"prompt": "x"}
HELLO = [
    {"id": 0, "token": "Hello", "logprob": -0.25, "bytes": [72, 101, 108, 108, 111]},
    {"id": 1, "token": " there", "logprob": -0.5, "bytes": [32, 116, 104, 101, 114, 101]},
    {"id": 2, "token": ".", "logprob": -0.75, "bytes": [46]},
]


class _Bytes(FakeEngine):
    """Every token is a byte of a text of three-byte characters; a character's text comes with its last byte."""

    raw = "€日x".encode()
    texts = ("", "", "€", "", "", "日", "x")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        for i, (byte, text) in enumerate(zip(self.raw, self.texts, strict=True)):
            yield Token(0, byte, text, "stop" if i == len(self.raw) - 1 else None, logprob=-1.0)


def test_entries() -> None:
    """OpenAI's fields and the id, for the token and for the likeliest ones."""
    token = Token(0, 1, "", logprob=-0.5, top_logprobs=((2, -0.1), (1, -0.5)))
    (entry,) = entries(FakeEngine(), [token])
    assert entry == HELLO[1] | {"top_logprobs": [HELLO[2] | {"logprob": -0.1}, HELLO[1]]}


def test_what_json_cannot_say() -> None:
    """Minus infinity is OpenAI's -9999; half a character shows as a replacement mark and keeps its bytes."""
    (entry,) = entries(_Bytes(), [Token(0, 0xE2, "", logprob=-math.inf, top_logprobs=((0xE2, -math.inf),))])
    half = {"id": 0xE2, "token": "\ufffd", "logprob": -9999.0, "bytes": [0xE2]}
    assert entry == half | {"top_logprobs": [half]}


class _Vocabulary(FakeEngine):
    """A token for each of some byte strings."""

    pieces = (b"a", b"\xe2\x82", b"\xe2", b" \xf0\x9f", b"a", b"\xac", b"a", "\ufffd".encode())

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def likeliest(chosen: int, *top: int) -> dict[str, float]:
    """Names in OpenAI's completions of a token and the likeliest ones, with their ids as log-probabilities."""
    token = Token(0, chosen, "", logprob=-chosen, top_logprobs=tuple((one, -one) for one in top))
    found = columns(entries(_Vocabulary(), [token]), [0])["top_logprobs"][0]
    assert isinstance(found, dict)
    return found


def test_parts_of_characters_are_named_by_their_bytes() -> None:
    """As OpenAI writes them, so that five alternatives stay five; a character U+FFFD is itself."""
    assert likeliest(2, 1, 2, 3, 5, 7) == {
        "bytes:\\xe2\\x82": -1,
        "bytes:\\xe2": -2,
        "bytes: \\xf0\\x9f": -3,
        "bytes:\\xac": -5,
        "\ufffd": -7,
    }


@pytest.mark.parametrize(
    ("chosen", "top", "names"),
    [
        (4, (0, 4, 6, 1), ["token_id:0", "a", "token_id:6", "bytes:\\xe2\\x82"]),
        (1, (0, 4, 6), ["a", "token_id:4", "token_id:6", "bytes:\\xe2\\x82"]),
        (6, (0, 1), ["token_id:0", "bytes:\\xe2\\x82", "a"]),
    ],
)
def test_tokens_of_one_text_have_names_of_their_own(chosen: int, top: tuple[int, ...], names: list[str]) -> None:
    """The token that is there has its text for a name, or else the likeliest one; the others have their ids."""
    assert list(likeliest(chosen, *top)) == names


def test_offsets_count_the_characters_of_the_text() -> None:
    """Also where its bytes are broken: each U+FFFD that the text shows for them is one."""
    offsets = TextOffsets(10)
    pieces = [b"a", b"\xe2", b"\x82", b"\xac", b"\xff\xff", b"\xe6\x97", b"b", b"c"]
    assert [offsets.add(piece) for piece in pieces] == [10, 11, 12, 12, 12, 14, 15, 16]
    assert offsets.next == 10 + len(b"".join(pieces).decode("utf-8", "replace"))


@pytest.mark.parametrize(("given", "most"), [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 2}, 2)])
async def test_chat(given: dict[str, Any], most: int) -> None:
    """Each choice carries all its tokens' entries, each with as many of the likeliest as asked for."""
    engine = FakeEngine()
    answer = await chat.handle(CHAT | {"logprobs": True, "n": 2} | given, fake_context(engine))
    assert engine.jobs[0][0].params.logprobs == most
    expected = [entry | {"top_logprobs": HELLO[:most]} for entry in HELLO]
    assert [choice["logprobs"] for choice in answer["choices"]] == [{"content": expected}] * 2
    ChatResponse.model_validate(answer, extra="forbid", strict=True)


@pytest.mark.parametrize("given", [{}, {"logprobs": False}, {"logprobs": None, "top_logprobs": None}])
async def test_chat_without(given: dict[str, Any]) -> None:
    """Unless asked for, there are none, and the engine is not asked for any."""
    engine = FakeEngine()
    answer = await chat.handle(CHAT | given, fake_context(engine))
    assert answer["choices"][0]["logprobs"] is None
    assert engine.jobs[0][0].params.logprobs is None
    async for chunk in chat.stream(CHAT | given, fake_context()):
        assert chunk["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("operation", [generate, complete])
@pytest.mark.parametrize("most", [0, 1, 20])
async def test_text(operation: Any, most: int) -> None:
    """The text operations have the same entries, of the new tokens only; 0 asks for the tokens' own alone."""
    engine = FakeEngine()
    answer = await operation.handle(TEXT | {"logprobs": most, "num_return_sequences": 2}, fake_context(engine))
    assert engine.jobs[0][0].params.logprobs == most
    expected = [entry | {"top_logprobs": HELLO[:most]} for entry in HELLO]
    assert [sequence["logprobs"] for sequence in answer["sequences"]] == [expected] * 2
    TextResponse.model_validate(answer, extra="forbid", strict=True)


@pytest.mark.parametrize("operation", [generate, complete])
async def test_text_without(operation: Any) -> None:
    """Unless asked for, neither answer nor stream mentions them."""
    answer = await operation.handle(TEXT | {"logprobs": None}, fake_context())
    assert "logprobs" not in answer["sequences"][0]
    assert all(["logprobs" not in event async for event in operation.stream(TEXT, fake_context())])


@pytest.mark.parametrize("words", [("Hello", " there", "."), ("", "x", ""), ("", ""), ("a", "", "b"), ("x",)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("most", [1, 2, 100])
async def test_streamed_entries_are_those_of_the_answer(words: tuple[str, ...], n: int, most: int) -> None:
    """Joined over a choice's chunks, nothing is missing, doubled or out of order, whatever text was held back."""
    payload = CHAT | {"logprobs": True, "top_logprobs": 1, "n": n, "max_tokens": most}
    answer = await chat.handle(payload, fake_context(FakeEngine(words)))
    joined: list[list[Any]] = [[] for _ in range(n)]
    async for chunk in chat.stream(payload, fake_context(FakeEngine(words))):
        ChatChunk.model_validate(chunk, extra="forbid", strict=True)
        for choice in chunk["choices"]:
            joined[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    assert joined == [choice["logprobs"]["content"] for choice in answer["choices"]]
    assert [len(content) for content in joined] == [min(most, len(words))] * n

    texts = TEXT | {"logprobs": 1, "num_return_sequences": n, "max_new_tokens": most}
    whole = await complete.handle(texts, fake_context(FakeEngine(words)))
    pieces: list[list[Any]] = [[] for _ in range(n)]
    async for event in complete.stream(texts, fake_context(FakeEngine(words))):
        TextChunk.model_validate(event, extra="forbid", strict=True)
        if "index" in event:
            pieces[event["index"]] += event["logprobs"]
    assert pieces == [sequence["logprobs"] for sequence in whole["sequences"]] == joined


async def test_a_chunk_carries_the_tokens_whose_text_it_releases() -> None:
    """Tokens that are parts of a character come together, with the chunk that shows it; their bytes are its bytes."""
    chunks = [chunk async for chunk in chat.stream(CHAT | {"logprobs": True}, fake_context(_Bytes()))]
    released = [
        (choice["delta"].get("content"), bytes(itertools.chain(*(entry["bytes"] for entry in logprobs["content"]))))
        for chunk in chunks
        for choice in chunk["choices"]
        if (logprobs := choice["logprobs"])
    ]
    assert released == [("€", "€".encode()), ("日", "日".encode()), ("x", b"x")]


async def test_tokens_without_text_come_with_the_last_chunk() -> None:
    """What was held back to the end, as a stop string's tokens are, is reported where the reason is."""
    chunks = [c async for c in chat.stream(CHAT | {"logprobs": True}, fake_context(FakeEngine(("a", "", ""))))]
    *_, text, last = (chunk["choices"][0] for chunk in chunks)
    assert [entry["id"] for entry in text["logprobs"]["content"]] == [0]
    assert [entry["id"] for entry in last["logprobs"]["content"]] == [1, 2]
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
