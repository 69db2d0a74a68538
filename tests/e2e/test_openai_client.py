"""OpenAI's own client against the service: what its users rely on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from handlers.context import Context
from runtime.errors import Draining, ModelLoading, TooManyRequests
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

HI: list[Any] = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def _client(ctx: Context | None = None, **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(ctx, **settings) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0, timeout=10) as client,
    ):
        yield client


async def test_chat() -> None:
    """A plain answer, with everything the client offers as attributes."""
    engine = FakeEngine(token_length=9)
    async with _client(fake_context(engine)) as client:
        answer = await client.chat.completions.create(
            model="fake", messages=HI, n=2, temperature=0, seed=7, stop=["x"], max_completion_tokens=50, user="me"
        )
    assert answer.id == "chatcmpl-id1"
    assert answer.object == "chat.completion"
    assert answer.created == 1_700_000_000
    assert answer.model == "fake"
    assert [choice.message.content for choice in answer.choices] == ["Hello there."] * 2
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 6, 15)
    params = engine.jobs[0][0].params
    assert (params.max_new_tokens, params.seed, params.stop, params.n) == (50, 7, ("x",), 2)


async def test_chat_at_the_base_without_v1() -> None:
    """The client works with the shorter route as its base, too."""
    async with serving() as url, AsyncOpenAI(base_url=url, api_key="none needed", max_retries=0) as client:
        answer = await client.chat.completions.create(model="fake", messages=HI)
    assert answer.choices[0].message.content == "Hello there."


async def test_message_kinds() -> None:
    """Roles, text parts and names as the client's types have them."""
    engine = FakeEngine()
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "c"},
    ]
    async with _client(fake_context(engine)) as client:
        await client.chat.completions.create(model="fake", messages=messages)
    assert [(message.role, message.content) for message in engine.chats[0]] == [
        ("system", "Be brief."),
        ("user", "ab"),
        ("assistant", "c"),
    ]


async def test_an_answer_put_back() -> None:
    """The client's own dump of an answer is part of the next request's history."""
    engine = FakeEngine()
    messages: list[Any] = [*HI]
    async with _client(fake_context(engine)) as client:
        for _ in range(2):
            answer = await client.chat.completions.create(model="fake", messages=messages)
            messages += [answer.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    assert [(message.role, message.content) for message in engine.chats[1]] == [
        ("user", "Hi"),
        ("assistant", "Hello there."),
        ("user", "And?"),
    ]


async def test_values_that_ask_for_nothing() -> None:
    """null, and neutral values of what is not supported, are as if left out."""
    engine = FakeEngine()
    nothing: Any = {
        **dict.fromkeys(("temperature", "top_p", "n", "presence_penalty", "frequency_penalty", "stream", "seed")),
        **{"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "stop": []},
        **{"metadata": {"job": "1"}, "service_tier": "auto", "extra_body": {"top_k": None, "min_tokens": None}},
    }
    async with _client(fake_context(engine)) as client:
        await client.chat.completions.create(model="fake", messages=HI)
        await client.chat.completions.create(model="fake", messages=HI, **nothing)
    assert engine.jobs[0] == engine.jobs[1]


async def test_many_prompts() -> None:
    """2,048 prompts in one request, answered in their order, streamed or not."""
    prompts = [f"{i} " for i in range(2048)]
    async with _client(fake_context(FakeEngine(words=("x",)))) as client:
        answer = await client.completions.create(model="fake", prompt=prompts, echo=True)
        stream = await client.completions.create(model="fake", prompt=prompts, echo=True, stream=True)
        pieces = {chunk.choices[0].index: chunk.choices[0].text async for chunk in stream}
    assert [choice.text for choice in answer.choices] == [f"{prompt}x" for prompt in prompts]
    assert [pieces[index] for index in range(2048)] == [f"{prompt}x" for prompt in prompts]


async def test_fields_of_ours() -> None:
    """Fields that OpenAI does not have are sent as the client sends extras."""
    engine = FakeEngine()
    async with _client(fake_context(engine)) as client:
        await client.chat.completions.create(
            model="fake", messages=HI, extra_body={"top_k": 3, "repetition_penalty": 1.5}
        )
    assert (engine.jobs[0][0].params.top_k, engine.jobs[0][0].params.repetition_penalty) == (3, 1.5)


async def test_sampling_fields() -> None:
    """The client's own fields for sampling reach the model; token ids travel as texts."""
    engine = FakeEngine()
    async with _client(fake_context(engine)) as client:
        await client.chat.completions.create(
            model="fake",
            messages=HI,
            presence_penalty=0.5,
            frequency_penalty=-1,
            logit_bias={"7": -100, "5": 2},
            extra_body={"min_p": 0.25, "min_tokens": 2},
        )
    params = engine.jobs[0][0].params
    assert (params.presence_penalty, params.frequency_penalty, params.min_p) == (0.5, -1, 0.25)
    assert (params.logit_bias, params.min_new_tokens) == (((7, -100.0), (5, 2.0)), 2)


async def test_logprobs() -> None:
    """Log-probabilities come as the client's attributes, with bytes that join to the text."""
    async with _client() as client:
        answer = await client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert [(entry.token, entry.logprob) for entry in content] == [("Hello", -0.25), (" there", -0.5), (".", -0.75)]
    assert bytes(byte for entry in content for byte in entry.bytes or []) == b"Hello there."
    assert [[(top.token, top.logprob) for top in entry.top_logprobs] for entry in content] == [
        [("Hello", -0.25), (" there", -0.5)]
    ] * 3


async def test_streamed_logprobs() -> None:
    """The client's accumulator joins the chunks' log-probabilities to those of the whole answer."""
    async with _client() as client:
        whole = await client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=1)
        async with client.chat.completions.stream(model="fake", messages=HI, logprobs=True, top_logprobs=1) as stream:
            final = await stream.get_final_completion()
    assert whole.choices[0].logprobs is not None
    assert final.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


async def test_cached_tokens() -> None:
    """The tokens of the prompt that were cached are where the client looks for them."""
    async with _client(fake_context(FakeEngine(token_length=9, cached_tokens=8))) as client:
        answer = await client.chat.completions.create(model="fake", messages=HI)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 8


async def test_stream() -> None:
    """Chunks that join to the answer, and the usage in a last chunk without choices."""
    async with _client(fake_context(FakeEngine(token_length=9))) as client:
        stream = await client.chat.completions.create(
            model="fake", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Hello there."
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * 4 + ["stop"]
    assert all(piece.usage is None for piece in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 12
    assert {chunk.id for chunk in chunks} == {"chatcmpl-id1"}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


async def test_stream_without_usage() -> None:
    """Unless asked for, every chunk has its choice."""
    async with _client() as client:
        stream = await client.chat.completions.create(model="fake", messages=HI, stream=True)
        async for chunk in stream:
            assert len(chunk.choices) == 1
            assert chunk.usage is None


async def test_stream_helper() -> None:
    """The client's own accumulator understands the chunks."""
    async with (
        _client() as client,
        client.chat.completions.stream(model="fake", messages=HI, stream_options={"include_usage": True}) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there."
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.completion_tokens == 3


async def test_completion() -> None:
    """A plain completion, with everything the client offers as attributes."""
    engine = FakeEngine(token_length=9)
    async with _client(fake_context(engine)) as client:
        answer = await client.completions.create(
            model="fake",
            prompt=["a", "b"],
            n=2,
            best_of=1,
            echo=True,
            temperature=0,
            seed=7,
            stop=["x"],
            max_tokens=50,
            presence_penalty=0.5,
            frequency_penalty=-1,
            logit_bias={"7": -100},
            user="me",
            extra_body={"min_p": 0.25, "top_k": 3},
        )
    assert (answer.id, answer.object, answer.created, answer.model) == (
        "cmpl-id1",
        "text_completion",
        1_700_000_000,
        "fake",
    )
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (i, f"{prompt}Hello there.", "stop") for i, prompt in enumerate("aabb")
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (18, 12, 30)
    params = engine.jobs[0][0].params
    assert (params.max_new_tokens, params.seed, params.stop, params.n) == (50, 7, ("x",), 2)
    assert (params.presence_penalty, params.frequency_penalty, params.min_p, params.top_k) == (0.5, -1, 0.25, 3)


async def test_completion_logprobs() -> None:
    """The lists of the older form are the client's attributes; with max_tokens 0 they tell of the prompt alone."""
    async with _client(fake_context(FakeEngine(token_length=3))) as client:
        answer = await client.completions.create(model="fake", prompt="Hello there.", logprobs=1)
        prompt = await client.completions.create(
            model="fake", prompt="Hello there.", logprobs=1, echo=True, max_tokens=0
        )
    (found,) = (choice.logprobs for choice in answer.choices)
    assert found is not None
    assert (found.tokens, found.token_logprobs) == (["Hello", " there", "."], [-0.25, -0.5, -0.75])
    assert found.text_offset == [0, 5, 11]
    assert found.top_logprobs is not None
    assert found.top_logprobs[2] == {"Hello": -0.25, ".": -0.75}
    assert prompt.choices[0].text == "Hello there."
    (told,) = (choice.logprobs for choice in prompt.choices)
    assert told is not None
    assert (told.tokens, told.token_logprobs) == (["Hello", " there", "."], [None, -0.5, -0.75])
    assert (told.top_logprobs or [0])[0] is None
    assert told.text_offset == [0, 5, 11]


async def test_completion_stream() -> None:
    """Pieces that join to the text, and the usage in a last chunk without choices if asked for."""
    async with _client(fake_context(FakeEngine(token_length=9))) as client:
        stream = await client.completions.create(
            model="fake", prompt="Say: ", echo=True, stream=True, stream_options={"include_usage": True}
        )
        *pieces, last = [chunk async for chunk in stream]
        plain = [chunk async for chunk in await client.completions.create(model="fake", prompt="x", stream=True)]
    assert "".join(piece.choices[0].text for piece in pieces) == "Say: Hello there."
    assert [piece.choices[0].finish_reason for piece in pieces] == [None, None, "stop"]
    assert all(piece.usage is None for piece in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 12
    assert {chunk.object for chunk in (*pieces, last)} == {"text_completion"}
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in plain)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": ["x"] * 2049}, "prompt"),
        ({"prompt": ["x"] * 3, "n": 1024}, "n"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_completions(change: dict[str, Any], param: str, stream: bool) -> None:
    """What a completion cannot be asked is the client's BadRequestError, which names it; streamed or not."""
    async with _client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(**{"model": "fake", "prompt": "x", "stream": stream} | change)
    assert (caught.value.param, caught.value.code) == (param, "invalid_request")


async def test_completion_stream_that_fails_midway() -> None:
    """An error midway is raised from the stream by the client, with our message."""
    engine = FakeEngine(fail_after=2, failure=Draining("shutting down"))
    async with _client(fake_context(engine)) as client:
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="shutting down"):
            async for _ in stream:
                pass


async def test_closing_a_stream_frees_the_engine() -> None:
    """A client that closes its stream early is not generated for any longer."""
    engine = FakeEngine(words=("a",) * 10_000, pause=0.005)
    async with _client(fake_context(engine)) as client:
        stream = await client.chat.completions.create(model="fake", messages=HI, stream=True, max_tokens=10_000)
        async for _ in stream:
            break
        assert engine.open_streams == 1
        await stream.close()
        await until(lambda: engine.open_streams == 0)


async def test_stream_that_fails_midway() -> None:
    """An error midway is raised from the stream by the client, with our message."""
    engine = FakeEngine(fail_after=2, failure=Draining("shutting down"))
    async with _client(fake_context(engine)) as client:
        stream = await client.chat.completions.create(model="fake", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="shutting down") as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "draining"


async def test_models() -> None:
    """The list of models, with our fields beside OpenAI's, and one of them by its id."""
    async with _client() as client:
        (model,) = [model async for model in client.models.list()]
        assert await client.models.retrieve("fake") == model
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("owner/other:adapter")
    assert caught.value.code == "model_not_found"
    assert (model.id, model.object, model.created, model.owned_by) == ("fake", "model", 1, "warmstart")
    assert model.model_extra is not None
    assert {"state": "ready", "default": True, "source": "folder"}.items() <= model.model_extra.items()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"extra_body": {"tempratur": 1}}, "tempratur"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"max_tokens": 4, "extra_body": {"min_tokens": 5}}, "min_tokens"),
        ({"n": 1025}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools.0.function.name"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"extra_body": {"stream_options": {"include_usage": True}, "stream": False}}, "stream_options"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests(change: dict[str, Any], param: str, stream: bool) -> None:
    """A wrong or unsupported field is the client's BadRequestError, which names it; streamed or not."""
    async with _client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": "fake", "messages": HI, "stream": stream} | change)
    assert caught.value.status_code == 400
    assert caught.value.param == param
    assert caught.value.code == "invalid_request"
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message
    assert caught.value.response.headers["X-Request-Id"]
    assert caught.value.request_id == caught.value.response.headers["X-Request-Id"]


async def test_prompt_that_does_not_fit() -> None:
    """A prompt too long for the model has the code that clients look for."""
    async with _client(fake_context(FakeEngine(token_length=8, info=replace(INFO, context_length=8)))) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="fake", messages=HI)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "maximum context length is 8 tokens. However, you requested 9 tokens (8 in" in caught.value.message


async def test_unknown_model() -> None:
    """A model that is not served is the client's NotFoundError."""
    async with _client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-5", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_unknown_route() -> None:
    """What the service does not offer is NotFoundError in the same shape."""
    async with _client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.moderations.create(input="x")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("failure", "error", "code", "kind"),
    [
        (TooManyRequests("full", retry_after=2), openai.RateLimitError, "queue_full", "rate_limit_error"),
        (ModelLoading("loading", retry_after=2), openai.InternalServerError, "model_loading", "server_error"),
        (RuntimeError("/srv/secret"), openai.InternalServerError, "internal_error", "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures(
    failure: Exception, error: type[openai.APIStatusError], code: str, kind: str, stream: bool
) -> None:
    """A full queue is the client's RateLimitError, the rest its InternalServerError; each with our code."""
    async with _client(fake_context(FakeEngine(fail_after=0, failure=failure))) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model="fake", messages=HI, stream=stream)  # type: ignore[call-overload]
    assert (caught.value.code, caught.value.type) == (code, kind)
    assert "secret" not in str(caught.value)
    assert caught.value.response.headers.get("Retry-After") == (None if code == "internal_error" else "2")


async def test_denied() -> None:
    """An address that may not call is the client's PermissionDeniedError."""
    async with _client(allowed_ips="10.0.0.0/8") as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.models.list()
    assert caught.value.code == "client_address_denied"


async def test_retry_succeeds() -> None:
    """A client that retries gets its answer once there is room: the hint is one its retry understands."""

    class Full(FakeEngine):
        refused = False

        async def encode_chat(self, messages: Any, **options: Any) -> tuple[int, ...]:
            if not self.refused:
                self.refused = True
                raise TooManyRequests("full", retry_after=0.01)
            return await super().encode_chat(messages, **options)

    async with _client(fake_context(Full())) as client:
        answer = await client.with_options(max_retries=1).chat.completions.create(model="fake", messages=HI)
    assert answer.choices[0].message.content == "Hello there."


async def test_decisions() -> None:
    """Decisions come as the client's types, with choices as they were sent."""
    questions: list[Any] = [
        {"type": "predicate", "name": "sure", "instructions": "It is sure."},
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "true"}, {"value": True}]},
        {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    async with _client(fake_context(FakeEngine())) as client:
        decision = await client.decisions.create(model="fake", input="Hi", questions=questions)
    sure, choice, score = decision.answers
    assert (sure.type, sure.name) == ("predicate", "sure")
    assert choice.type == "choice"
    assert (choice.choice, [one.value for one in choice.probabilities]) == ("true", ["true", True])
    assert score.type == "score"
    assert [(one.value, one.label) for one in score.probabilities] == [(0, "low"), (1, "high")]
    assert decision.usage.total_tokens == decision.usage.input_tokens + 6
