"""handlers.generation.answer_grammar: what an answer with tools or reasoning may be, walked at random."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from handlers.generation.answer_grammar import answer_grammar
from handlers.generation.tools import ToolUse
from runtime.answer_format import AnswerFormat
from runtime.engine.grammar import GrammarCompiler, GrammarMatcher
from runtime.errors import InvalidRequest
from runtime.loading.checkpoint_tokenizer import wrap
from runtime.model.answer_formats import syntaxes
from runtime.types import Grammar, Tool
from tests.support.models import train_tokenizer
from tests.support.random_answers import random_answer
from tests.support.tool_templates import TOOL_TOKENS

TOKENIZER = wrap(train_tokenizer(control=(*TOOL_TOKENS, "<think>", "</think>")))
END = TOKENIZER.eos_token_id or 0
COMPILER = GrammarCompiler(TOKENIZER, end_ids=[END], vocabulary=700)
TOOLS = (
    Tool("get", "", {"properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}),
    Tool("get_all", "", {}),
    Tool("say", "", {"type": "object", "properties": {"text": {"type": "string", "maxLength": 5}}}),
)
CONTROL = {token.content: token_id for token_id, token in TOKENIZER.added_tokens.items() if token_id != END}


def form_of(name: str) -> AnswerFormat:
    """The format of a family, with the tokens of the tokenizer."""
    return AnswerFormat(next(syntax for syntax in syntaxes() if syntax.name == name), hidden=CONTROL)


def matcher(grammar: Grammar | None) -> GrammarMatcher:
    assert grammar is not None
    return COMPILER.compile(grammar)


def accepts(grammar: Grammar | None, form: AnswerFormat, text: str) -> bool:
    """Whether a grammar matches a text, whose control tokens are such."""
    found = matcher(grammar)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    rest = ids[len(found.forced) :]
    if ids[: len(found.forced)] != found.forced:
        return False
    return found.matcher.validate_tokens([*rest, END]) == len(rest) + 1 or (
        found.matcher.validate_tokens(rest) == len(rest) and _ends(found, rest)
    )


def _ends(found: GrammarMatcher, ids: list[int]) -> bool:
    found.matcher.consume_tokens(ids)
    return bool(found.matcher.is_accepting())


@pytest.mark.parametrize("name", [syntax.name for syntax in syntaxes()])
def test_required_calls_are_well_formed(name: str) -> None:
    """Whatever is chosen of what the grammar allows, all calls parse, match their schema and are known functions."""
    form, use = form_of(name), ToolUse(TOOLS, (0, 1, 2), required=True, most=2)
    grammar = answer_grammar(use, form, "none", None)
    dice = random.Random(name)
    for _ in range(10):
        answer = random_answer(matcher(grammar), TOKENIZER, form, use, dice)
        assert answer["content"] is None
        assert 1 <= len(answer["tool_calls"]) <= 2
        for call in answer["tool_calls"]:
            tool = next(tool for tool in TOOLS if tool.name == call["function"]["name"])
            jsonschema.validate(json.loads(call["function"]["arguments"]), dict(tool.parameters))


@pytest.mark.parametrize("name", [syntax.name for syntax in syntaxes()])
def test_auto(name: str) -> None:
    """Free text, or free text and calls of the tools; once a call has begun, nothing else."""
    form, use = form_of(name), ToolUse(TOOLS, (0, 1, 2))
    grammar = answer_grammar(use, form, "none", None)
    syntax = form.tools
    call = f"{syntax.before_name}get_all{syntax.before_arguments}{{}}{syntax.after_arguments}"
    calls = syntax.begin + call + syntax.separator + call + syntax.end
    assert accepts(grammar, form, "Hello, {there}.")
    assert accepts(grammar, form, calls)
    assert accepts(grammar, form, "Well. " + calls)
    assert not accepts(grammar, form, calls + " And more.")
    assert not accepts(grammar, form, calls.replace("get_all", "set_all"))
    assert not accepts(grammar, form, calls.replace("{}", '{"x": 1}'))
    assert accepts(grammar, form, call) or not syntax.bare


def test_named_function_once() -> None:
    """Of one function, one call, other functions are not allowed, and neither is text."""
    form = form_of("hermes")
    grammar = answer_grammar(ToolUse(TOOLS, (1,), required=True, most=1), form, "none", None)
    call = '<tool_call>\n{"name": "get_all", "arguments": {}}\n</tool_call>'
    assert accepts(grammar, form, call)
    assert not accepts(grammar, form, f"{call}\n{call}")
    assert not accepts(grammar, form, call.replace("get_all", "say"))
    assert not accepts(grammar, form, "Hello.")


@pytest.mark.parametrize("content", [Grammar("json_schema", '{"type": "boolean"}', "x"), Grammar("regex", "true", "x")])
def test_content_with_a_grammar(content: Grammar) -> None:
    """With a grammar of the content, an answer matches that grammar or is calls."""
    form = form_of("hermes")
    grammar = answer_grammar(ToolUse(TOOLS, (1,)), form, "none", content)
    assert accepts(grammar, form, "true")
    assert accepts(grammar, form, '<tool_call>\n{"name": "get_all", "arguments": {}}\n</tool_call>')
    assert not accepts(grammar, form, "Hello.")


def test_content_with_a_grammar_and_bare_calls() -> None:
    """Where calls may begin without a mark and the model has no token for one, both together are refused by name."""
    form = AnswerFormat(form_of("llama3").tools)
    with pytest.raises(InvalidRequest) as caught:
        answer_grammar(ToolUse(TOOLS, (1,)), form, "none", Grammar("json_schema", "{}", "response_format"))
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("reasoning", "text", "good"),
    [
        ("none", "true", True),
        ("none", "<think>x</think>true", False),
        ("optional", "true", True),
        ("optional", "<think>x</think>\n\ntrue", True),
        ("open", "x</think>true", True),
        ("open", "true", False),
    ],
)
def test_reasoning_before_content(reasoning: Any, text: str, good: bool) -> None:
    """A grammar of the content is of what comes behind the reasoning."""
    form = form_of("hermes")
    grammar = answer_grammar(ToolUse(), form, reasoning, Grammar("regex", "true", "guided_regex"))
    assert accepts(grammar, form, text) is good


def test_limit_of_reasoning() -> None:
    """After the limit the end of reasoning is forced, and no draft reaches beyond it."""
    form = form_of("hermes")
    grammar = answer_grammar(ToolUse(), form, "optional", None, budget=3)
    found = matcher(grammar)
    words = TOKENIZER.encode("one two three four five", add_special_tokens=False)
    found.accept([form.hidden["<think>"]])
    assert found.valid(words) == 1
    found.accept(words[:2])
    assert found.forced == [form.hidden["</think>"]]
    found.accept(found.forced[:])
    found.accept(words)
    assert found.valid(words) == len(words)


def test_limit_of_zero() -> None:
    """Reasoning that the prompt has begun ends with the first token."""
    form = form_of("hermes")
    assert matcher(answer_grammar(ToolUse(), form, "open", None, budget=0)).forced[:1] == [form.hidden["</think>"]]


def test_limit_without_a_token() -> None:
    """Where no token ends reasoning, a limit is refused by name."""
    with pytest.raises(InvalidRequest) as caught:
        answer_grammar(ToolUse(), AnswerFormat(), "open", None, budget=3)
    assert caught.value.param == "thinking_token_budget"


def test_invalid_schema() -> None:
    """A schema that the library refuses is an error that names its tool."""
    tools = (*TOOLS, Tool("bad", "", {"properties": {"x": {"type": "string", "pattern": "("}}}))
    with pytest.raises(InvalidRequest) as caught:
        matcher(answer_grammar(ToolUse(tools, (0, 1, 2, 3)), form_of("hermes"), "none", None))
    assert caught.value.param == "tools.3.function.parameters"


def test_no_grammar() -> None:
    """Without tools, any text is allowed, and a grammar of the content stays as it is."""
    content = Grammar("regex", "a", "guided_regex")
    assert answer_grammar(ToolUse(), AnswerFormat(), "optional", None) is None
    assert answer_grammar(ToolUse(), AnswerFormat(), "none", content) is content
