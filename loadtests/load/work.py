"""What is asked: the kinds of work that a scenario can mix, and the requests that they become."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loadtests.load.lengths import Lengths, LengthsOrNumber
from loadtests.load.prompts import Prompts
from loadtests.load.trace import TraceRow

Kind = Literal["chat", "completion", "structured", "tools", "score", "embedding", "generate", "event", "get"]

PATHS: dict[str, str] = {
    "chat": "/v1/chat/completions",
    "structured": "/v1/chat/completions",
    "tools": "/v1/chat/completions",
    "completion": "/v1/completions",
    "score": "/v1/completions",
    "embedding": "/v1/embeddings",
    "generate": "/generate",
}
UNIQUE = "{unique}"
_CHATS = ("chat", "structured", "tools")
_GENERATING = (*_CHATS, "completion", "generate", "event")
_NEVER_STREAMED = ("score", "embedding", "get")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class WorkKind(BaseModel):
    """One kind of work with its share of the requests."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Kind
    name: str = Field("", max_length=80)
    """The name in reports; by default the kind."""
    weight: float = Field(1.0, gt=0, le=1_000_000)
    prompt: str = Field("", max_length=10_000_000)
    """A text instead of random words; ``{unique}`` in it stands for words that no other prompt has."""
    prompt_tokens: LengthsOrNumber = Lengths(distribution="constant", mean=64)
    output_tokens: LengthsOrNumber = Lengths(distribution="constant", mean=64)
    """The limit of the answer; with ``ignore_eos`` in ``fields`` (vLLM's, ours) it is the length."""
    turns: LengthsOrNumber = Lengths(distribution="constant", mean=1)
    """User messages of a chat, each sent with the whole conversation before it."""
    think_seconds: float = Field(0.0, ge=0, le=3600)
    """Seconds before each turn after the first."""
    system_tokens: int = Field(0, ge=0, le=1_000_000)
    """A system prompt of so many tokens that all chats of this kind share, so that a prefix cache can help."""
    stream: bool = True
    hang_up_after: LengthsOrNumber | None = None
    """The client disconnects after so many events of the stream."""
    temperature: float = Field(0.0, ge=0, le=2)
    path: str = ""
    """Another path than the kind's; required for ``get``."""
    operation: Literal["chat", "complete", "generate"] = "complete"
    """Of an ``event``: the operation that a worker runs."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, which replace those of the same name."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        given = self.model_fields_set
        if self.prompt and "prompt_tokens" in given:
            raise ValueError("prompt_tokens: a prompt is given, which has its own length")
        if self.kind == "get" and not self.path.startswith("/"):
            raise ValueError("path: kind 'get' needs one that begins with /")
        if self.kind == "event" and self.path:
            raise ValueError("path: an event has none")
        if self.kind != "chat" and (wrong := sorted(given & {"turns", "think_seconds", "system_tokens"})):
            raise ValueError(f"{', '.join(wrong)}: for kind 'chat' only")
        if "operation" in given and self.kind != "event":
            raise ValueError("operation: for kind 'event' only")
        if self.kind in _NEVER_STREAMED and (wrong := sorted(given & {"hang_up_after", "output_tokens"})):
            raise ValueError(f"{', '.join(wrong)}: kind {self.kind!r} streams nothing")
        if self.kind in _NEVER_STREAMED:
            self.stream = False
        if self.hang_up_after and not (self.stream and self.kind != "event"):
            raise ValueError("hang_up_after: only of a stream over HTTP")
        self.name = self.name or self.kind
        return self


@dataclass(frozen=True)
class WorkRequest:
    """One request to send."""

    work: str
    """The name of its kind of work."""
    method: str
    path: str
    """An operation's name for an event."""
    body: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    hang_up_after: int | None = None
    """Events after which the client disconnects."""
    json_answer: bool = False
    """Whether the answer's text must be JSON, unless its length was limited."""
    generates: bool = True
    """Whether the answer has tokens."""
    wait: float = 0.0
    """Seconds to wait before it is sent."""


def choose(work: list[WorkKind], random: Random) -> WorkKind:
    """Return a kind of work by weight."""
    return random.choices(work, [kind.weight for kind in work])[0]


def requests(
    work: WorkKind, prompts: Prompts, random: Random, key: str, model: str | None, row: TraceRow | None = None
) -> Generator[WorkRequest, str, None]:
    """Yield the requests of one arrival; each answer's text is sent in before the next.

    Args:
        work: the kind of work.
        prompts: makes the prompts.
        random: draws the lengths.
        key: what makes the prompts unique within the run.
        model: the model to name; None for none.
        row: the lengths of a trace, which replace the kind's.
    """
    length = row.prompt_tokens if row else work.prompt_tokens.draw(random)
    tokens = row.output_tokens if row else work.output_tokens.draw(random)
    if work.kind == "get":
        yield WorkRequest(work.name, "GET", work.path, generates=False)
        return
    if work.kind in _CHATS:
        yield from _chat(work, prompts, random, key, model, length, tokens)
        return
    prompt = _prompt(work, prompts, length, random, key)
    if work.kind == "event" and work.operation == "chat":
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    elif work.kind in ("generate", "event"):
        body = {"prompt": prompt, "max_new_tokens": tokens}
    elif work.kind == "embedding":
        body = {"input": prompt}
    elif work.kind == "score":
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
    else:
        body = {"prompt": prompt, "max_tokens": tokens}
    yield _request(work, body, random, model)


def _chat(
    work: WorkKind, prompts: Prompts, random: Random, key: str, model: str | None, length: int, tokens: int
) -> Generator[WorkRequest, str, None]:
    messages: list[dict[str, str]] = []
    if work.system_tokens:
        shared = Random(f"system/{work.name}")
        messages.append({"role": "system", "content": prompts.text(work.system_tokens, shared, f"system/{work.name}")})
    for turn in range(work.turns.draw(random)):
        if turn:
            length, tokens = work.prompt_tokens.draw(random), work.output_tokens.draw(random)
        first = not turn and not work.system_tokens
        text = _prompt(work, prompts, length, random, f"{key}/{turn}", template=first)
        messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"messages": list(messages), "max_tokens": tokens}
        if work.kind == "structured":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
            }
        elif work.kind == "tools":
            body |= {"tools": [TOOL], "tool_choice": "required"}
        answer = yield _request(work, body, random, model, work.think_seconds if turn else 0.0)
        messages.append({"role": "assistant", "content": answer})


def _prompt(work: WorkKind, prompts: Prompts, length: int, random: Random, key: str, template: bool = False) -> str:
    if work.prompt:
        return work.prompt.replace(UNIQUE, prompts.unique(key))
    return prompts.text(length, random, key, template=template)


def _request(work: WorkKind, body: dict[str, Any], random: Random, model: str | None, wait: float = 0.0) -> WorkRequest:
    if work.kind in _GENERATING:
        body["temperature"] = work.temperature
    if work.stream and work.kind != "event":
        body["stream"] = True
        if work.kind != "generate":
            body["stream_options"] = {"include_usage": True}
    if model:
        body["model"] = model
    return WorkRequest(
        work.name,
        "POST",
        work.operation if work.kind == "event" else work.path or PATHS[work.kind],
        body | work.fields,
        stream=work.stream,
        hang_up_after=work.hang_up_after.draw(random) if work.hang_up_after else None,
        json_answer=work.kind in ("structured", "tools"),
        generates=work.kind in _GENERATING,
        wait=wait,
    )
