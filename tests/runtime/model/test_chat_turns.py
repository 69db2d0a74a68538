"""runtime.model.chat_turns: tools, calls and results as templates read them, and what becomes of control tokens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from runtime.loading.checkpoint_tokenizer import wrap
from runtime.model.chat_encoder import ChatEncoder
from runtime.types import Message, Tool, ToolCall
from tests.support.chat_templates import FAMILIES
from tests.support.models import CHATML, train_tokenizer
from tests.support.tool_templates import TOOL_TEMPLATES, TOOL_TOKENS

TEMPLATES = {**TOOL_TEMPLATES, **{name: FAMILIES[name] for name in ("ChatML", "Gemma 2", "Llama 2", "Phi-3")}}
TOOLS = (
    Tool("get_weather", "It gets.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("say", "", {}),
)
CALL = ToolCall("call_0123456789", "get_weather", '{"city": "Oslo \\"x\\""}')
CHAT = (
    Message("user", "Weather?"),
    Message("assistant", "", (CALL,)),
    Message("tool", "It rains.", tool_call_id="call_0123456789"),
)


def encoder(template: str) -> ChatEncoder:
    return ChatEncoder(wrap(train_tokenizer(control=TOOL_TOKENS, template=template)))


def rendered(template: str, messages: tuple[Message, ...] = CHAT, tools: tuple[Tool, ...] = TOOLS) -> str:
    """The prompt's text, with its control tokens."""
    made = encoder(template)
    return made._tokenizer.decode(list(made.encode(messages, tools)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_is_lost(name: str) -> None:
    """Whether the template knows tools or not, the model sees the tools, the calls and their results."""
    text = rendered(TEMPLATES[name])
    for shown in ("get_weather", "say", "It gets.", "city", "Oslo", "It rains."):
        assert shown in text


def test_native_turns() -> None:
    """A template that knows tools gets the definitions in OpenAI's form, and arguments as an object."""
    text = rendered(TOOL_TEMPLATES["hermes"])
    described = json.dumps(
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "It gets.", "parameters": TOOLS[0].parameters},
        }
    )
    assert described in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo \\"x\\""}}\n</tool_call>' in text
    assert "<tool_response>\nIt rains.\n</tool_response>" in text


def test_arguments_as_text() -> None:
    """A template that writes the arguments as they are gets their text."""
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}\n{% endfor %}"
        '{{ tools | tojson }}<tool_call> "arguments"'
    )
    assert 'get_weather({"city": "Oslo \\"x\\""})' in rendered(template)


def test_calls_that_the_template_does_not_write() -> None:
    """They are written into the text of the assistant, in the family's syntax."""
    text = rendered(TOOL_TEMPLATES["phi4"])
    assert '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo \\"x\\""}}]<|/tool_call|>' in text
    assert "<|tool|>[" in text


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("arguments", ['{"city": "Os', "[]", "Oslo", "[" * 10000])
def test_arguments_that_are_no_object(name: str, arguments: str) -> None:
    """Arguments that were cut off, or are none, are shown as the model wrote them, whatever the template takes."""
    encoded = encoder(TEMPLATES[name])
    broken = (CHAT[0], Message("assistant", "", (CALL, replace(CALL, arguments=arguments))), *CHAT[2:])
    for chat in (CHAT, broken, CHAT):
        text = encoded._tokenizer.decode(list(encoded.encode(chat, TOOLS)))
        assert text.count("get_weather") > 1
    assert arguments in encoded._tokenizer.decode(list(encoded.encode(broken, TOOLS)))


def test_several_calls_where_the_template_takes_one() -> None:
    """A template that refuses several calls in one message gets them as text, too."""
    chat = (CHAT[0], Message("assistant", "", (CALL, CALL)), CHAT[2], CHAT[2])
    text = rendered(TOOL_TEMPLATES["llama3"], chat)
    assert text.count('{"name": "get_weather", "parameters": {"city": "Oslo') == 2
    assert text.count("It rains.") == 2


def test_generic_turns() -> None:
    """Without such a template the tools are described in the system's message, and results are a user's."""
    text = rendered(CHATML, (Message("system", "Be kind."), *CHAT, Message("tool", "7", tool_call_id="x")))
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call these functions, described as JSON:\n{")
    assert text.count("<|im_start|>system") == 1
    assert (
        "<|im_start|>user\n<tool_response>\nIt rains.\n</tool_response>\n<tool_response>\n7\n</tool_response><|im_end|>"
    ) in text


def test_no_system_message() -> None:
    """A template that refuses system messages has the tools in the first user's message."""
    text = rendered(FAMILIES["Gemma 2"])
    assert "<start_of_turn>user\nWeather?\n\nYou can call these functions" in text


def test_instruction() -> None:
    """A family that writes JSON only if asked is asked for it."""
    text = rendered(TOOL_TEMPLATES["lfm2"], (Message("system", "Be kind."), *CHAT))
    assert "Be kind.\n\nOutput function calls as JSON." in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_in_texts_stay_text(name: str) -> None:
    """In names, descriptions, schemas, arguments and results, what reads like a control token does not become one."""
    made = encoder(TEMPLATES[name])
    control = {i for i, token in made._tokenizer.added_tokens.items() if token.special}

    def found(text: str) -> list[int]:
        tools = (Tool("f", text, {"properties": {text: {"enum": [text, {text: text}]}}}),)
        chat = (
            Message("user", "x"),
            Message("assistant", text, (ToolCall(text, "f", json.dumps({text: [text]})),)),
            Message("tool", text, tool_call_id=text),
        )
        return [token_id for token_id in made.encode(chat, tools) if token_id in control]

    assert found("".join(TOOL_TOKENS)) == found("plain")
