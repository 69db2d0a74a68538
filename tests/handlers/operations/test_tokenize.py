"""handlers.operations.tokenize, detokenize and apply_template: texts and chats to token ids and back."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.operations import apply_template, detokenize, tokenize, tokenizer_info
from handlers.schemas.tokens import TokenizeResponse
from runtime.errors import InvalidRequest
from runtime.types import TemplateOptions, Tool
from tests.support.fakes import INFO, FakeEngine, fake_context

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        pytest.param({"prompt": "ab"}, 3, id="a prompt gets the tokenizer's own token, as in vLLM"),
        pytest.param({"prompt": "ab", "add_special_tokens": False}, 2, id="a prompt without it"),
        pytest.param({"prompt": ""}, 1, id="an empty prompt"),
        pytest.param({"content": "ab"}, 2, id="content gets none, as in llama.cpp"),
        pytest.param({"content": "ab", "add_special": True}, 3, id="content with it"),
        pytest.param({"content": "ab", "parse_special": False}, 2, id="content as plain text"),
        pytest.param({"messages": HI}, 2, id="a chat"),
    ],
)
async def test_inputs(fields: dict[str, Any], count: int) -> None:
    """A text by vLLM's or llama.cpp's name, or a chat; each with its server's default for added tokens."""
    answer = await tokenize.handle(fields, fake_context(FakeEngine(token_length=len)))
    assert answer == {
        "tokens": list(range(count)),
        "count": count,
        "max_model_len": INFO.context_length,
        "token_strs": None,
    }
    TokenizeResponse.model_validate(answer, extra="forbid", strict=True)


async def test_spellings() -> None:
    """The tokens as the vocabulary spells them, and as text or else bytes beside their ids."""
    engine = FakeEngine(words=("a", " b"), token_length=2)
    engine.token_bytes = lambda token_id: b" b" if token_id else b"\xc3"  # type: ignore[method-assign]
    engine.token_name = lambda token_id: f"t{token_id}"  # type: ignore[method-assign]
    answer = await tokenize.handle(
        {"content": "x", "with_pieces": True, "return_token_strs": True}, fake_context(engine)
    )
    assert answer["tokens"] == [{"id": 0, "piece": [0xC3]}, {"id": 1, "piece": " b"}]
    assert answer["token_strs"] == ["t0", "t1"]


async def test_a_chat_is_formatted_as_asked() -> None:
    """Its options reach the template."""
    engine = FakeEngine()
    fields = {"continue_final_message": True, "chat_template_kwargs": {"thinking": False}, "add_special_tokens": True}
    await tokenize.handle({"messages": HI, **fields}, fake_context(engine))
    assert engine.template_options == [TemplateOptions(True, True, '{"thinking": false}', True)]


async def test_tools_are_formatted() -> None:
    """The tools of a chat reach the template."""
    engine, tool = FakeEngine(), {"type": "function", "function": {"name": "f", "description": "d"}}
    for operation in (tokenize, apply_template):
        await operation.handle({"messages": HI, "tools": [tool]}, fake_context(engine))
    assert engine.tools == [(Tool("f", "d", {}),)] * 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give one of prompt, content and messages"),
        ({"prompt": "a", "content": "a"}, "give one of prompt, content and messages"),
        ({"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt: needs messages"),
        ({"prompt": "a", "tools": []}, "tools: needs messages"),
        ({"content": "a", "add_special": True, "add_special_tokens": True}, "not both"),
        ({"content": "a", "add_special": True, "parse_special": False}, "parse_special"),
        ({"messages": HI, "add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"messages": HI, "chat_template_kwargs": {"messages": []}}, "messages cannot be set here"),
        ({"messages": HI, "chat_template_kwargs": {"x": "y" * 20_000}}, "limit of 16384"),
    ],
)
async def test_fields_that_do_not_agree(fields: dict[str, Any], said: str) -> None:
    """What would have no effect, or two effects, is refused by name."""
    with pytest.raises(InvalidRequest, match=said):
        await tokenize.handle(fields, fake_context())


async def test_detokenize() -> None:
    """The text by vLLM's name and by llama.cpp's."""
    assert await detokenize.handle({"tokens": [0, 1, 2]}, fake_context()) == {
        "prompt": "Hello there.",
        "content": "Hello there.",
    }


async def test_an_unknown_id() -> None:
    """The error names field, id and vocabulary."""
    with pytest.raises(InvalidRequest, match=r"tokens: 256 is not a token id .* 256 tokens") as caught:
        await detokenize.handle({"tokens": [0, 256]}, fake_context())
    assert caught.value.param == "tokens"


async def test_tokenizer_info() -> None:
    """The special tokens that the model has, its chat template, and its context length."""
    assert await tokenizer_info.handle({}, fake_context()) == {
        "model_max_length": INFO.context_length,
        "chat_template": "{{ messages }}",
        "bos_token": None,
        "eos_token": "<end>",
        "pad_token": None,
        "unk_token": None,
    }


async def test_apply_template() -> None:
    """The chat as text, with the template's options."""
    engine = FakeEngine()
    fields = {"messages": [{"role": "developer", "content": "x"}, *HI], "add_generation_prompt": False}
    assert await apply_template.handle(fields, fake_context(engine)) == {"prompt": "<system>x<user>Hi"}
    assert engine.template_options == [TemplateOptions(add_generation_prompt=False)]
