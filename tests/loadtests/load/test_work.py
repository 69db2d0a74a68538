from __future__ import annotations

from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from loadtests.load.prompts import Prompts
from loadtests.load.trace import TraceRow
from loadtests.load.work import WorkKind, WorkRequest, choose, requests

PROMPTS = Prompts(salt=1)


def one(key: str = "0", row: TraceRow | None = None, model: str | None = None, **fields: Any) -> WorkRequest:
    return next(requests(WorkKind(**fields), PROMPTS, Random(1), key, model, row))


def test_a_chat_sends_its_conversation_again() -> None:
    """Each turn has the answers before it, and waits as long as a person thinks."""
    work = WorkKind(kind="chat", turns=3, think_seconds=2, prompt_tokens=10, output_tokens=5)
    session = requests(work, PROMPTS, Random(1), "k", None)
    asked = [next(session), session.send("first"), session.send("second")]
    roles = [[message["role"] for message in request.body["messages"]] for request in asked]
    assert roles == [["user"], ["user", "assistant", "user"], ["user", "assistant"] * 2 + ["user"]]
    assert [request.wait for request in asked] == [0, 2, 2]
    assert asked[2].body["messages"][1]["content"] == "first"
    texts = [message["content"] for message in asked[2].body["messages"] if message["role"] == "user"]
    assert len(set(texts)) == 3
    with pytest.raises(StopIteration):
        session.send("third")


def test_a_system_prompt_is_shared() -> None:
    """It is the same in all chats of a kind, and their questions differ."""
    first, second = (one(key, kind="chat", system_tokens=40).body["messages"] for key in "ab")
    assert first[0] == second[0]
    assert first[0]["role"] == "system"
    assert len(first[0]["content"].split()) == 40
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("fields", "path", "expected"),
    [
        ({"kind": "chat"}, "/v1/chat/completions", {"max_tokens": 64, "stream": True, "temperature": 0.0}),
        ({"kind": "chat", "stream": False}, "/v1/chat/completions", {"max_tokens": 64, "temperature": 0.0}),
        ({"kind": "completion", "temperature": 0.7}, "/v1/completions", {"max_tokens": 64, "temperature": 0.7}),
        ({"kind": "score"}, "/v1/completions", {"max_tokens": 0, "echo": True, "logprobs": 1}),
        ({"kind": "embedding"}, "/v1/embeddings", {}),
        ({"kind": "generate"}, "/generate", {"max_new_tokens": 64, "stream": True}),
        ({"kind": "generate", "path": "/complete", "output_tokens": 5}, "/complete", {"max_new_tokens": 5}),
        ({"kind": "tools"}, "/v1/chat/completions", {"tool_choice": "required"}),
        ({"kind": "event", "operation": "complete"}, "complete", {"max_new_tokens": 64}),
        ({"kind": "event", "operation": "chat"}, "chat", {"max_tokens": 64}),
        ({"kind": "chat", "fields": {"ignore_eos": True, "max_tokens": 1}}, "/v1/chat/completions", {"max_tokens": 1}),
    ],
)
def test_each_kind_has_its_request(fields: dict[str, Any], path: str, expected: dict[str, Any]) -> None:
    """With the fields that OpenAI's API, or Warmstart's, has for it; the scenario's own fields come last."""
    request = one(model="m", **fields)
    assert (request.method, request.path, request.body["model"]) == ("POST", path, "m")
    assert request.body.items() >= expected.items()
    if request.stream and "stream" in request.body and fields["kind"] != "generate":
        assert request.body["stream_options"] == {"include_usage": True}
    assert ("stream" in request.body) == (request.stream and fields["kind"] != "event")


def test_structured_answers_are_checked() -> None:
    """A schema goes with the request, and the answer must be JSON."""
    request = one(kind="structured")
    assert request.json_answer
    assert request.body["response_format"]["json_schema"]["schema"]["required"]


def test_a_path_can_be_requested_alone() -> None:
    """A probe or a page."""
    assert one(kind="get", path="/health") == WorkRequest("get", "GET", "/health", generates=False)


def test_a_trace_replaces_the_lengths() -> None:
    """Of the prompt and of the answer."""
    request = one(kind="completion", row=TraceRow(at=0, prompt_tokens=33, output_tokens=7))
    assert len(request.body["prompt"].split()) == 33
    assert request.body["max_tokens"] == 7


def test_a_prompt_of_ones_own_is_made_different() -> None:
    """Where it says so."""
    first, second = (one(key, kind="completion", prompt="Say {unique} twice").body["prompt"] for key in "ab")
    assert first != second
    assert first.startswith("Say ")


def test_kinds_come_by_weight() -> None:
    """Three of four, here."""
    work = [WorkKind(kind="chat", weight=3), WorkKind(kind="completion")]
    random = Random(1)
    drawn = [choose(work, random).kind for _ in range(4_000)]
    assert drawn.count("chat") == pytest.approx(3_000, abs=100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "poem"}, "kind"),
        ({"kind": "get"}, "path"),
        ({"kind": "event", "path": "/x"}, "path"),
        ({"kind": "completion", "turns": 2}, "turns"),
        ({"kind": "score", "output_tokens": 2}, "output_tokens"),
        ({"kind": "chat", "operation": "complete"}, "operation"),
        ({"kind": "chat", "stream": False, "hang_up_after": 3}, "hang_up_after"),
        ({"kind": "chat", "prompt": "x", "prompt_tokens": 3}, "prompt_tokens"),
        ({"kind": "chat", "weight": 0}, "weight"),
    ],
)
def test_fields_that_say_nothing_for_a_kind_are_refused(fields: dict[str, Any], message: str) -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(ValidationError, match=message):
        WorkKind(**fields)
