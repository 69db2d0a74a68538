"""OpenAI's fields that are not supported: neutral values are taken, all others are refused by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from openai.resources.chat.completions import Completions as Chat
from openai.resources.completions import Completions

from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest, CompletionsRequest
from handlers.schemas.strict import Strict
from handlers.schemas.unsupported import CHAT, COMPLETIONS
from runtime.errors import InvalidRequest

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"prompt": "x"}
FIELDS = [
    *(pytest.param(ChatRequest, HI, name, field, id=f"chat {name}") for name, field in CHAT.items()),
    *(pytest.param(CompletionsRequest, TEXT, name, field, id=f"text {name}") for name, field in COMPLETIONS.items()),
]


@pytest.mark.parametrize(("model", "base", "name", "field"), FIELDS)
def test_neutral_values(model: type[Strict], base: dict[str, Any], name: str, field: Any) -> None:
    """A neutral value, or null, is the same request as none."""
    for value in (None, *field.neutral):
        assert parse(model, base | {name: value}) == parse(model, base)


@pytest.mark.parametrize(("model", "base", "name", "field"), FIELDS)
def test_other_values(model: type[Strict], base: dict[str, Any], name: str, field: Any) -> None:
    """Any other is refused: the message names the field, what is not supported, and what may be sent."""
    for value in ("high", ["x"], {"type": "x"}, 7, 0, [{}]):
        if field.allows(value):
            continue
        with pytest.raises(InvalidRequest, match="or send null") as caught:
            parse(model, base | {name: value})
        assert caught.value.param == name
        assert caught.value.message.startswith(f"{name}: {field.reason}")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"modalities": ["audio"]},
            'modalities: this server generates text only; leave it out or send null or ["text"]',
        ),
        (
            {"store": True},
            "store: stored completions are not supported by this server; leave it out or send null or false",
        ),
    ],
)
def test_how_a_refusal_reads(wrong: dict[str, Any], says: str) -> None:
    """It says what to do."""
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, HI | wrong)
    assert caught.value.message == says


@pytest.mark.parametrize(("model", "call"), [(ChatRequest, Chat.create), (CompletionsRequest, Completions.create)])
def test_all_that_the_official_client_sends_is_known(model: type[Strict], call: Any) -> None:
    """Every parameter of the client is a field, or one that is not supported; none is unknown."""
    sent = {*inspect.signature(call).parameters} - {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert sent <= {*model.model_fields, *model.unsupported}
    assert model.model_fields.keys().isdisjoint(model.unsupported)
