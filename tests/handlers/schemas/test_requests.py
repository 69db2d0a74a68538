"""Requests: what is let in, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from handlers.schemas.base import Empty, ModelChoice
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest, CompleteRequest, GenerateRequest
from runtime.errors import InvalidRequest

TEXT: dict[str, Any] = {"prompt": "x"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
MODELS = [
    pytest.param(GenerateRequest, TEXT, id="generate"),
    pytest.param(CompleteRequest, TEXT, id="complete"),
    pytest.param(ChatRequest, CHAT, id="chat"),
]
SAMPLING = [
    ("temperature", 0, 2, 1e-9),
    ("top_p", 0, 1, 1e-9),
    ("top_k", -1, 1_000_000, 1),
    ("min_p", 0, 1, 1e-9),
    ("repetition_penalty", 1e-9, 10, 1e-9),
    ("presence_penalty", -2, 2, 1e-9),
    ("frequency_penalty", -2, 2, 1e-9),
    ("seed", -(2**63), 2**63 - 1, 1),
]
RANGES = [
    *((model.values[0], base, *row) for model in MODELS for base in [model.values[1]] for row in SAMPLING),
    (GenerateRequest, TEXT, "max_length", 2, 10_000_000, 1),
    (CompleteRequest, TEXT, "max_new_tokens", 1, 10_000_000, 1),
    (GenerateRequest, TEXT, "num_return_sequences", 1, 1024, 1),
    (ChatRequest, CHAT, "max_tokens", 1, 10_000_000, 1),
    (ChatRequest, CHAT, "max_completion_tokens", 1, 10_000_000, 1),
    (ChatRequest, CHAT, "n", 1, 1024, 1),
    (GenerateRequest, TEXT, "min_new_tokens", 0, 10_000_000, 1),
    (CompleteRequest, TEXT, "logprobs", 0, 20, 1),
    (ChatRequest, CHAT, "min_tokens", 0, 10_000_000, 1),
    (ChatRequest, CHAT | {"logprobs": True}, "top_logprobs", 0, 20, 1),
]


def _refusal(model: type[BaseModel], payload: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(model, payload)
    assert caught.value.status == 400
    # Whatever came in, what goes out can be encoded, printed and logged.
    for text in (caught.value.message, caught.value.param or ""):
        assert text.encode("utf-8").decode().isprintable()
        assert len(text) < 1000
    return caught.value


@pytest.mark.parametrize(("model", "base", "field", "least", "most", "step"), RANGES)
def test_ranges(
    model: type[BaseModel], base: dict[str, Any], field: str, least: float, most: float, step: float
) -> None:
    """Both ends of a range are inside; one step further is refused, by the field's name and with the limit."""
    for value in (least, most):
        assert getattr(parse(model, base | {field: value}), field) == (0 if (field, value) == ("top_k", -1) else value)
    for value in (least - step, most + step):
        error = _refusal(model, base | {field: value})
        assert error.param == field
        assert error.message.startswith(f"{field}: input should be ")


@pytest.mark.parametrize(
    ("field", "good", "bad", "limit"),
    [
        ("prompt", ["x"] * 2048, ["x"] * 2049, "at most 2048 items"),
        ("prompt", ["x"], [], "at least 1 item"),
        ("prompt", "", [], "at least 1 item"),
        ("stop", "x" * 256, "x" * 257, "at most 256 characters"),
        ("stop", ["x"] * 16, ["x"] * 17, "at most 16 items"),
        ("stop", "x", "", "at least 1 character"),
        ("stop", [], [""], "at least 1 character"),
        ("model", "m", "", "at least 1 character"),
    ],
)
def test_lengths(field: str, good: object, bad: object, limit: str) -> None:
    """Texts and lists have lengths; the refusal says which length."""
    parse(GenerateRequest, TEXT | {field: good})
    error = _refusal(GenerateRequest, TEXT | {field: bad})
    assert (error.param or "").split(".")[0] == field
    assert limit in error.message


@pytest.mark.parametrize(
    ("payload", "param", "limit"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": CHAT["messages"] * 1025}, "messages", "at most 1024 items"),
        (CHAT | {"user": "x" * 257}, "user", "at most 256 characters"),
        (
            {"messages": [{"role": "user", "content": "x", "name": "x" * 65}]},
            "messages.0.name",
            "at most 64 characters",
        ),
    ],
)
def test_chat_lengths(payload: dict[str, Any], param: str, limit: str) -> None:
    """A chat's lists and texts have lengths too."""
    error = _refusal(ChatRequest, payload)
    assert error.param == param
    assert limit in error.message


def test_chat_lengths_just_inside() -> None:
    """The longest chat, user and name that are allowed."""
    message = {"role": "user", "content": "", "name": "x" * 64}
    assert len(parse(ChatRequest, {"messages": [message] * 1024, "user": "x" * 256}).messages) == 1024


@pytest.mark.parametrize(("model", "base"), MODELS)
def test_defaults(model: type[BaseModel], base: dict[str, Any]) -> None:
    """OpenAI's operations sample as OpenAI does unless told otherwise, the others alike; none streams unasked."""
    request = parse(model, base).model_dump()
    expected = {
        "model": None,
        **(
            {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
            if model is ChatRequest
            else {"temperature": 0.7, "top_p": 0.9, "top_k": 50}
        ),
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "stop": None,
        "stop_token_ids": None,
        "ignore_eos": False,
        "seed": None,
        "stream": False,
    }
    assert {name: request[name] for name in expected} == expected
    assert not request["logprobs"]
    assert request["min_tokens" if model is ChatRequest else "min_new_tokens"] == 0


def test_one_or_many() -> None:
    """A text stands for a list of one."""
    request = parse(GenerateRequest, {"prompt": "a", "stop": "b"})
    assert (request.prompt, request.stop) == (["a"], ["b"])


@pytest.mark.parametrize(("model", "base"), MODELS)
def test_logit_bias(model: type[BaseModel], base: dict[str, Any]) -> None:
    """Token ids in digits, as JSON has them, become numbers."""
    given = {"0": -100, "50256": 100, "7": 0.5, "9999999999": 0}
    assert parse(model, base | {"logit_bias": given}).logit_bias == {
        0: -100.0,
        50256: 100.0,
        7: 0.5,
        9999999999: 0.0,
    }
    assert parse(model, base | {"logit_bias": {}}).logit_bias == {}


@pytest.mark.parametrize(
    ("bias", "param"),
    [
        ({"5": 100.1}, "logit_bias.5"),
        ({"5": -101}, "logit_bias.5"),
        ({"5": None}, "logit_bias.5"),
        ({"5": "1"}, "logit_bias.5"),
        ({"5": True}, "logit_bias.5"),
        ({"5": float("nan")}, "logit_bias.5"),
        ({"5": []}, "logit_bias.5"),
        ({"-1": 1}, "logit_bias.-1"),
        ({"05": 1}, "logit_bias.05"),
        ({"5.0": 1}, "logit_bias.5.0"),
        ({" 5": 1}, "logit_bias. 5"),
        ({"5\n": 1}, "logit_bias.5\\n"),
        ({"\u0665": 1}, "logit_bias.\u0665"),
        ({"the": 1}, "logit_bias.the"),
        ({"": 1}, "logit_bias.''"),
        ({5: 1}, "logit_bias.5"),
        ({"9" * 11: 1}, "logit_bias.99999999999"),
        ({str(i): 1 for i in range(301)}, "logit_bias"),
        ([5], "logit_bias"),
        ("5", "logit_bias"),
    ],
)
def test_no_logit_bias(bias: object, param: str) -> None:
    """Anything but at most 300 token ids with numbers of -100 to 100 is refused by its name."""
    error = _refusal(ChatRequest, CHAT | {"logit_bias": bias})
    assert error.param == param
    assert "[key]" not in error.message


def test_largest_logit_bias() -> None:
    """300 entries are allowed."""
    parse(ChatRequest, CHAT | {"logit_bias": {str(i): 1 for i in range(300)}})


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": False}, {"logprobs": None}])
@pytest.mark.parametrize("most", [0, 5])
def test_top_logprobs_need_logprobs(logprobs: dict[str, Any], most: int) -> None:
    """Asking for the likeliest tokens alone is refused, as OpenAI does; null asks for nothing."""
    error = _refusal(ChatRequest, CHAT | logprobs | {"top_logprobs": most})
    assert (error.param, error.message) == ("top_logprobs", "top_logprobs: needs logprobs to be true")
    assert parse(ChatRequest, CHAT | logprobs | {"top_logprobs": None}).top_logprobs is None


def test_a_wrong_logprobs_is_told_once() -> None:
    """Where logprobs itself is wrong, that is what is said."""
    error = _refusal(ChatRequest, CHAT | {"logprobs": 3, "top_logprobs": 3})
    assert error.message == "logprobs: input should be a valid boolean"


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("temperature", "0.5", 0.5),
        ("temperature", 1, 1.0),
        ("temperature", True, 1.0),
        ("top_k", "7", 7),
        ("top_k", 1.0, 1),
        ("top_k", " 7 ", 7),
        ("seed", "-9223372036854775808", -(2**63)),
        ("max_new_tokens", "3", 3),
        ("max_length", 2.0, 2),
        ("num_return_sequences", "2", 2),
    ],
)
def test_numbers_are_lax(field: str, value: object, read: float) -> None:
    """What plainly means a number is one."""
    given = getattr(parse(GenerateRequest, TEXT | {field: value}), field)
    assert given == read
    assert type(given) is type(read)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 1.5),
        ("top_k", "1.5"),
        ("top_k", "many"),
        ("temperature", "warm"),
        ("temperature", ""),
        ("temperature", []),
        ("temperature", {}),
        ("seed", "0x10"),
        ("max_new_tokens", [3]),
    ],
)
def test_no_numbers(field: str, value: object) -> None:
    """What means no number, or half a one where a whole one is asked for, is refused."""
    assert _refusal(GenerateRequest, TEXT | {field: value}).param == field


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_length"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(float("nan"), id="nan"),
        pytest.param(float("inf"), id="inf"),
        pytest.param(float("-inf"), id="-inf"),
        pytest.param("nan", id="text nan"),
        pytest.param("Infinity", id="text infinity"),
        pytest.param("1e999", id="text 1e999"),
        pytest.param(10**400, id="huge"),
        pytest.param(-(10**400), id="hugely negative"),
        pytest.param("9" * 5000, id="text of 5000 digits"),
    ],
)
def test_endless_numbers(field: str, value: object) -> None:
    """Numbers that are none, or that no range holds, are refused like any other, not a crash."""
    assert _refusal(GenerateRequest, TEXT | {field: value}).param == field


@pytest.mark.parametrize(
    ("model", "payload", "param"),
    [
        (GenerateRequest, {"prompt": 5}, "prompt"),
        (GenerateRequest, {"prompt": True}, "prompt"),
        (GenerateRequest, {"prompt": {"a": "b"}}, "prompt"),
        (GenerateRequest, {"prompt": ["a", 5]}, "prompt.1"),
        (GenerateRequest, {"prompt": [["a"]]}, "prompt.0.0"),
        (GenerateRequest, {"prompt": b"bytes"}, "prompt"),
        (GenerateRequest, TEXT | {"stop": 5}, "stop"),
        (GenerateRequest, TEXT | {"stop": [5]}, "stop.0"),
        (GenerateRequest, TEXT | {"model": 5}, "model"),
        (GenerateRequest, TEXT | {"stream": "true"}, "stream"),
        (GenerateRequest, TEXT | {"stream": 1}, "stream"),
        (CompleteRequest, TEXT | {"echo": "yes"}, "echo"),
        (ChatRequest, CHAT | {"logprobs": 1}, "logprobs"),
        (ChatRequest, CHAT | {"stream_options": {}}, "stream_options"),
        (ChatRequest, CHAT | {"stream_options": {}, "stream": False}, "stream_options"),
        (ChatRequest, CHAT | {"metadata": {"a": 1}}, "metadata.a"),
        (ChatRequest, CHAT | {"logprobs": "true"}, "logprobs"),
        (CompleteRequest, TEXT | {"echo": 0}, "echo"),
        (ChatRequest, CHAT | {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (ChatRequest, CHAT | {"stream_options": True}, "stream_options"),
        (ChatRequest, {"messages": "hi"}, "messages"),
        (ChatRequest, {"messages": {"role": "user", "content": "x"}}, "messages"),
        (ChatRequest, {"messages": ["hi"]}, "messages.0"),
        (ChatRequest, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (ChatRequest, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (ChatRequest, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (ChatRequest, {"messages": [{"content": "x"}]}, "messages.0.role"),
        (ChatRequest, {"messages": [{"role": "critic", "content": "x"}]}, "messages.0.role"),
        (ChatRequest, {"messages": [{"role": 1, "content": "x"}]}, "messages.0.role"),
        (ChatRequest, {"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0"),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages.0.content.0",
        ),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ],
)
def test_strings_and_booleans_are_strict(model: type[BaseModel], payload: dict[str, Any], param: str) -> None:
    """Nothing else passes for a text, a list, an object or a boolean; the place at fault is named in dotted form."""
    error = _refusal(model, payload)
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


def test_refusals_speak_json_not_python() -> None:
    """A refusal does not name our classes or Python's."""
    for payload in ({"messages": ["hi"]}, {"messages": [{"role": "user", "content": [5]}]}, {"messages": [5], "x": 1}):
        message = _refusal(ChatRequest, payload).message
        assert not {"ChatMessage", "TextPart", "dictionary", "dict"} & set(message.replace(".", " ").split())


@pytest.mark.parametrize("model", [Empty, ModelChoice])
@pytest.mark.parametrize("payload", [None, [], "x", 5, 1.5, True, [{"prompt": "x"}]])
def test_not_an_object(model: type[BaseModel], payload: object) -> None:
    """A payload is an object."""
    error = _refusal(model, payload)
    assert error.message == "the request must be a JSON object"
    assert error.param is None


# Names that pydantic's own error paths are full of, and some that are hard to print.
NAMES = ["temprature", "str", "list[TextPart]", "parts", "text", "messages.0", "0", "'", "a b", "naïve", "日本"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("model", "base"), [*MODELS, pytest.param(Empty, {}, id="empty")])
def test_unknown_fields_are_refused_by_name(model: type[BaseModel], base: dict[str, Any], name: str) -> None:
    """A misspelt field is an error that names it, whatever its name, and not a default that surprises."""
    error = _refusal(model, base | {name: 1})
    assert error.param == name
    assert error.message == f"{name}: unknown field"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_inside_are_refused_by_name(name: str) -> None:
    """So it is inside messages, their parts and the stream options."""
    message = {"role": "user", "content": "x"}
    assert _refusal(ChatRequest, {"messages": [message, message | {name: 1}]}).param == f"messages.1.{name}"
    part = {"type": "text", "text": "x"}
    error = _refusal(ChatRequest, {"messages": [{"role": "user", "content": [part, {**part, f"{name}_": 1}]}]})
    assert error.message == f"messages.0.content.1.{name}_: unknown field"
    assert _refusal(ChatRequest, CHAT | {"stream_options": {name: 1}}).param == f"stream_options.{name}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "''"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp", "\\u202egnp"),
        ("x" * 100_000, "x" * 200),
        ("\x00", "\\x00"),
    ],
)
def test_unprintable_names_are_made_printable(name: str, shown: str) -> None:
    """Control characters are escaped, an empty name is shown as one, an endless one is cut."""
    error = _refusal(GenerateRequest, TEXT | {name: 1})
    assert error.message == f"{shown}: unknown field"
    assert error.param == shown


def test_many_faults_are_few_in_the_message() -> None:
    """At most five faults are told, the first of them in ``param``."""
    error = _refusal(GenerateRequest, TEXT | {f"x{i}": 1 for i in range(1000)})
    assert error.message.count("unknown field") == 5
    assert error.param == "x0"
    error = _refusal(GenerateRequest, TEXT | {f"x{i}": 1 for i in range(1001)})
    assert (error.message, error.param) == ("1001 fields are wrong or unknown", None)


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (GenerateRequest, {"prompt": "a\ud800"}),
        (GenerateRequest, {"prompt": ["a", "\udfff"]}),
        (GenerateRequest, TEXT | {"stop": "\ud83d"}),
        (GenerateRequest, TEXT | {"model": "\ud83d"}),
        (GenerateRequest, TEXT | {"\ud800": 1}),
        (GenerateRequest, TEXT | {"x\ud800y": 1}),
        (ChatRequest, {"messages": [{"role": "user", "content": "\ud800"}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", "name": "\ud800"}]}),
        (ChatRequest, {"messages": [{"role": "\ud800", "content": "x"}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", "\ud800": "x"}]}),
        (ChatRequest, CHAT | {"user": "\ud800"}),
        (ChatRequest, CHAT | {"temperature": "\ud800"}),
    ],
)
def test_lone_surrogates(model: type[BaseModel], payload: dict[str, Any]) -> None:
    """Half of a surrogate pair is refused wherever it stands, before a tokenizer trips over it."""
    json.loads(json.dumps(_refusal(model, payload).openai()).encode())


def test_whole_characters_pass() -> None:
    """Real characters outside the basic plane, and control characters, are text like any other."""
    text = "😀\x00\x1b\u202e"
    assert parse(GenerateRequest, {"prompt": text, "stop": text}).prompt == [text]
    for content in (text, [{"type": "text", "text": text}]):
        parse(ChatRequest, {"messages": [{"role": "user", "content": content}]})


def test_keys_that_are_no_strings() -> None:
    """A payload from Python rather than from JSON may hold other keys; they are refused."""
    _refusal(GenerateRequest, {**TEXT, 1: 2})  # type: ignore[dict-item]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles(role: str) -> None:
    """The roles that are understood."""
    assert parse(ChatRequest, {"messages": [{"role": role, "content": "x"}]}).messages[0].role == role
