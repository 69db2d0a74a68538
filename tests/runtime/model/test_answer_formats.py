"""runtime.model.answer_formats: the syntax of calls and reasoning, found from templates and tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.answer_format import GENERIC
from runtime.loading.checkpoint_tokenizer import wrap
from runtime.model.answer_formats import answer_format, syntaxes, tool_syntax
from runtime.model.chat_template import ChatTemplate
from tests.support.chat_templates import FAMILIES
from tests.support.models import CHATML, train_tokenizer
from tests.support.tool_templates import TOOL_TEMPLATES, TOOL_TOKENS


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_families(name: str) -> None:
    """Each family is known by its template."""
    assert tool_syntax(TOOL_TEMPLATES[name]).name == name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ tools }}[TOOL_CALLS] [{", "mistral v3"),
        ("{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", "mistral v11"),
        ("{{ tools }}<|start_of_role|><tool_call>[{", "granite"),
        ("{{ tools }}<tool_call>\n<function=f>\n<parameter=a>", "generic"),
        ("{{ my_tools }}<tool_call>", "generic"),
        ("{{ tools }}<|tool_call_start|>[", "lfm2"),
        ("{{ tools }}<TOOLCALL>[", "nemotron"),
    ],
)
def test_variants(source: str, name: str) -> None:
    """Variants of a family have syntaxes of their own; one that is not in the table is the generic one."""
    assert tool_syntax(source).name == name


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_without_tools(name: str) -> None:
    """Where a template does not read tools, the syntax is the generic one."""
    if "tools" not in FAMILIES[name]:
        assert tool_syntax(FAMILIES[name]) is GENERIC


def test_names_of_functions_cannot_end_early() -> None:
    """In every syntax a character that no name has follows the name."""
    for syntax in syntaxes():
        assert not syntax.before_arguments[0].isalnum()
        assert syntax.before_arguments[0] not in "_-"


def test_tokens() -> None:
    """Control tokens of the syntax are found with their ids; others are left out."""
    tokenizer = wrap(train_tokenizer(control=TOOL_TOKENS, template=TOOL_TEMPLATES["phi4"]))
    found = answer_format(tokenizer, None)
    ids = {token.content: token_id for token_id, token in tokenizer.added_tokens.items()}
    assert found.hidden == {name: ids[name] for name in ("<|tool_call|>", "<|/tool_call|>")}
    assert found.visible == {}


def test_tokens_that_have_a_text() -> None:
    """Added tokens that are not control tokens are part of the text."""
    from tokenizers import AddedToken

    fast = train_tokenizer(template=CHATML)
    fast.add_tokens([AddedToken("<tool_call>", special=False)])
    assert list(answer_format(wrap(fast), None).visible) == ["<tool_call>"]


@pytest.mark.parametrize(
    ("source", "reasoning", "switchable"),
    [
        (CHATML, "none", False),
        (CHATML + "{# <think> </think> #}", "optional", False),
        (CHATML + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", "optional", True),
        (
            CHATML + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}</think>{% endif %}",
            "open",
            True,
        ),
        (CHATML + "<think>{# </think> #}", "open", False),
        (CHATML + "<think></think>", "optional", False),
        (CHATML + "{% set enable_thinking = true %}<think>{# </think> #}", "open", False),
        ("{{ raise_exception('no') }}</think>", "optional", False),
    ],
)
def test_reasoning(source: str, reasoning: Any, switchable: bool) -> None:
    """A template that speaks of reasoning is of a model that reasons; its prompts may begin the reasoning."""
    tokenizer = wrap(train_tokenizer(template=source))
    found = answer_format(tokenizer, ChatTemplate(source, tokenizer.special_tokens))
    assert (found.reasoning, found.switchable) == (reasoning, switchable)
