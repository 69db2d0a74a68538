"""handlers.operations.decisions: OpenAI's Decisions API."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from handlers.context import RequestLimits
from handlers.generation import decision_questions
from handlers.generation.decision_questions import question_text
from handlers.operations import completions, decisions
from handlers.schemas.decisions import DecisionQuestion
from handlers.schemas.decisions_objects import DecisionsResponse
from runtime.answer_format import AnswerFormat
from runtime.errors import ContextLengthExceeded, InvalidRequest
from runtime.types import Message, TemplateOptions, TokenUsage
from tests.support.contexts import real
from tests.support.fakes import INFO, FakeEngine, fake_context

BROKEN = {"type": "predicate", "name": "broken", "instructions": "It is broken."}
TEAM = {"type": "choice", "instructions": "Which team?", "choices": [{"value": v} for v in ("a", "b", False)]}
BAD = {"type": "score", "instructions": "How bad?", "levels": [{"label": "fine"}, {"label": "bad"}]}
QUESTION: TypeAdapter[Any] = TypeAdapter(DecisionQuestion)
PAYLOAD: dict[str, Any] = {"input": "A broken screen.", "questions": [BROKEN, TEAM, BAD]}


async def test_answers() -> None:
    """Each question is a job whose continuations are the labels of its options; the answers come in their order."""
    engine = FakeEngine(cached_tokens=2, token_length=len)
    told: list[TokenUsage] = []
    answer = await decisions.handle(PAYLOAD, replace(fake_context(engine), observe=told.append))
    DecisionsResponse.model_validate(answer, strict=True)
    assert [(one["type"], one["name"]) for one in answer["answers"]] == [
        ("predicate", "broken"),
        ("choice", None),
        ("score", None),
    ]
    assert answer["answers"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-0.25)))
    assert answer["answers"][1]["choice"] == "a"
    assert [[job.continuations for job in jobs] for jobs in engine.jobs] == [
        [((0,), (1,))],
        [((0,), (1,), (2,)), ((0,), (1,))],
    ], "the first runs alone, so that the others find the input in the prefix cache"
    lengths = [len(job.token_ids) for jobs in engine.jobs for job in jobs]
    assert answer["model"] == "fake"
    assert answer["usage"] == {
        "input_tokens": sum(lengths),
        "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(lengths) + 7,
    }
    assert told == [TokenUsage(sum(lengths), 7, 6)]


@pytest.mark.parametrize(
    ("given", "before", "last"),
    [
        ("é", [], "é\n\n"),
        ([{"role": "user", "content": "é"}], [], "é\n\n"),
        (
            [
                {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            ],
            [Message("system", "a"), Message("assistant", "b")],
            "",
        ),
        (
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "a"}, {"type": "input_json", "data": [{"b": None}]}],
                }
            ],
            [],
            'a\n[{"b":null}]\n\n',
        ),
    ],
)
async def test_question_follows_the_input(given: Any, before: list[Message], last: str) -> None:
    """The question comes last, in the user's last message if that ends the input, so that the input is shared."""
    engine = FakeEngine()
    await decisions.handle({"input": given, "questions": [BROKEN]}, fake_context(engine))
    *earlier, asked = engine.chats[0]
    assert earlier == before
    assert asked.role == "user"
    assert asked.content.startswith(f"{last}Is this statement")


async def test_calls_in_the_input() -> None:
    """Calls and their results are those of a chat."""
    engine = FakeEngine()
    items = [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "b"},
    ]
    await decisions.handle({"input": items, "questions": [BROKEN]}, fake_context(engine))
    assert [message.role for message in engine.chats[0]] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("reasoning", ["none", "optional", "open"])
async def test_reasoning_is_off(reasoning: Any) -> None:
    """Where the template can turn reasoning off, it is: the labels are scored at the start of the answer."""
    engine = FakeEngine(answer_format=AnswerFormat(reasoning=reasoning, switchable=True))
    await decisions.handle({"input": "x", "questions": [BROKEN]}, fake_context(engine))
    assert engine.template_options == [TemplateOptions(arguments='{"enable_thinking": false}')]


@pytest.mark.parametrize(
    ("payload", "field", "says"),
    [
        ({"questions": []}, "questions", "at least 1 item"),
        ({"questions": [BROKEN | {"type": "other"}]}, "questions.0", "predicate, choice or score"),
        ({"questions": [TEAM | {"choices": [{"value": "a"}]}]}, "questions.0.choices", "at least 2 items"),
        ({"questions": [TEAM | {"choices": [{"value": "a"}] * 2}]}, "questions.0.choices", "same value twice"),
        ({"questions": [TEAM | {"choices": [{"value": 1}] * 2}]}, "questions.0.choices.0.value", "text or a boolean"),
        ({"questions": [BAD | {"levels": [{"label": "a"}] * 11}]}, "questions.0.levels", "at most 10 items"),
        ({"questions": [BROKEN] * 401}, "questions", "at most 400 items"),
        ({"questions": [BROKEN, TEAM, BAD, BAD]}, "questions", "9 sequences exceed the limit of 8"),
        ({"input": "x" * 1000}, "input", "MAX_PROMPT_CHARS"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "takes no images"),
        ({"input": [{"role": "user", "content": [{"type": "input_json", "data": [1]}]}]}, "input", "a list of objects"),
        ({"temperature": 0}, "temperature", "unknown field"),
    ],
)
async def test_wrong_requests(payload: dict[str, Any], field: str, says: str) -> None:
    """A wrong field is named, and nothing reaches the engine."""
    engine = FakeEngine()
    limits = RequestLimits(max_prompt_chars=600, max_sequences=8)
    with pytest.raises(InvalidRequest, match=says) as caught:
        await decisions.handle(PAYLOAD | payload, fake_context(engine, limits=limits))
    assert (caught.value.param or "").startswith(field)
    assert engine.jobs == []


async def test_models_that_cannot_answer() -> None:
    """A model that always reasons first is refused, as is one whose tokenizer has one token for two labels."""
    for engine, says in (
        (FakeEngine(answer_format=AnswerFormat(reasoning="open")), "cannot be turned off"),
        (FakeEngine(info=replace(INFO, chat_template=False)), "cannot tell the labels"),
    ):
        with pytest.raises(InvalidRequest, match=says) as caught:
            await decisions.handle({"input": "x", "questions": [BROKEN]}, fake_context(engine))
        assert caught.value.param == "model"
        assert engine.jobs == []


async def test_an_input_that_fills_the_context() -> None:
    """It is refused with the field's name."""
    engine = FakeEngine(info=replace(INFO, context_length=10), token_length=10)
    with pytest.raises(ContextLengthExceeded) as caught:
        await decisions.handle(PAYLOAD, fake_context(engine))
    assert caught.value.param == "input"


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 26])
@pytest.mark.parametrize("template", [True, False])
async def test_labels_score_as_completions_echo_them(
    prefix_cache_bytes: int, template: bool, tiny_llama: Path, tiny_gpt2: Path
) -> None:
    """The probabilities follow from the log-probabilities that ``completions`` echoes for the same tokens, to the last
    bit, and the prompt of a question is computed once.
    """
    async with (
        real(model_name=str(tiny_llama if template else tiny_gpt2), prefix_cache_bytes=prefix_cache_bytes) as ctx,
        ctx.models.lease(None) as engine,
    ):
        assert engine.info.chat_template == template
        computed = engine._metrics.step_tokens._sum  # type: ignore[attr-defined]
        for asked, count in ((BROKEN, 2), (TEAM, 3), (BAD, 2)):
            before = computed.get()
            answer = await decisions.handle({"input": "A crack.", "questions": [asked]}, ctx)
            usage = answer["usage"]
            new = usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]
            assert computed.get() - before == new + usage["output_tokens"] - 1
            question = QUESTION.validate_python(asked)
            prompt = await engine.encode_chat([Message("user", f"A crack.\n\n{question_text(question)}")])
            assert len(prompt) == usage["input_tokens"]
            logprobs = []
            for label in "ABC"[:count]:
                tokens = await engine.encode_plain(label if template else f" {label}")  # after the plain one's colon
                payload = {"prompt": [*prompt, *tokens], "max_tokens": 0, "echo": True, "logprobs": 0}
                echoed = (await completions.handle(payload, ctx))["choices"][0]["logprobs"]["token_logprobs"]
                logprobs.append(sum(echoed[len(prompt) :]))
            assert answer["answers"] == [decision_questions.answer(question, logprobs)]
