"""runtime.engine.encoder_engine: requests of an encoder, with a runner that computes no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from runtime.encoder_types import EncoderInput
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.pooling import EncoderHead
from runtime.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    ModelCannotEncode,
    ModelCannotGenerate,
    TooManyRequests,
)
from runtime.model.encoder_config import EncoderConfig
from runtime.model.tokenizer import Tokenizer
from runtime.telemetry.metrics import Metrics
from runtime.types import Message
from tests.support.fakes import INFO

WORDS = {word: i for i, word in enumerate(("[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "q:"))}


class Steps:
    """A runner whose states are the token ids. It can be stopped before each step, and fails for token 2."""

    max_tokens = 64

    def __init__(self) -> None:
        self.steps: list[list[EncoderInput]] = []
        self.go = threading.Event()
        self.go.set()
        self.closed = False

    def step_tokens(self, most: int) -> int:
        return most

    def states(self, texts: Sequence[EncoderInput], outputs: Sequence[range]) -> list[Any]:
        self.steps.append(list(texts))
        self.go.wait(10)
        if any(2 in text.ids for text in texts):
            raise RuntimeError("planted")
        return [np.array([[text.ids[i]] for i in span], np.float32) for text, span in zip(texts, outputs, strict=True)]

    def close(self) -> None:
        self.closed = True


def tokenizer() -> Tokenizer:
    backend = Backend(models.WordLevel(WORDS, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return Tokenizer(backend, None, {})


@pytest.fixture
def runner() -> Steps:
    return Steps()


@pytest.fixture
def start(runner: Steps) -> Iterator[Callable[..., EncoderEngine]]:
    """Starts engines and closes them."""
    started: list[EncoderEngine] = []

    def make(config: EncoderConfig | None = None, **options: Any) -> EncoderEngine:
        config = config or EncoderConfig(("embed",), 8, ("max",))
        info = replace(INFO, vocabulary_size=len(WORDS), encoder=config.info(1), generates=False)
        head, metrics = EncoderHead(config, {}), Metrics().model("test")
        started.append(EncoderEngine(runner, config, head, tokenizer(), info, metrics=metrics, **options))
        return started[-1]

    yield make
    runner.go.set()
    for engine in started:
        engine.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (another thread makes it true)
            await asyncio.sleep(0.001)


async def test_texts_become_vectors_in_order(start: Callable[..., EncoderEngine]) -> None:
    """Each text's result comes back in its place."""
    engine = start()
    inputs = await engine.tokenize_inputs(["a b", "c", "a"])
    assert [text.ids for text in inputs] == [(0, 3, 4, 1), (0, 5, 1), (0, 3, 1)]
    assert [vector.tolist() for vector in await engine.embed(inputs)] == [[4], [5], [3]]
    assert await engine.embed([]) == []


async def test_pairs_have_token_types(start: Callable[..., EncoderEngine]) -> None:
    """A query and a document are joined as the tokenizer says, and the document is what is cut."""
    engine = start()
    (pair,) = await engine.tokenize_inputs([("a", "b c")])
    assert (pair.ids, pair.types) == ((0, 3, 1, 4, 5, 1), (0, 0, 0, 1, 1, 1))
    (cut,) = await engine.tokenize_inputs([("a", "b c")], max_tokens=5, truncate="start")
    assert cut.ids == (0, 3, 1, 5, 1)
    with pytest.raises(ContextLengthExceeded):
        await engine.tokenize_inputs([("a b", "c")], max_tokens=5, truncate="end")


async def test_a_text_that_is_too_long_is_refused_or_cut(start: Callable[..., EncoderEngine]) -> None:
    """The error names the text, its tokens and the limit; a cut keeps the tokens around the text."""
    engine = start()
    with pytest.raises(ContextLengthExceeded, match=r"8 tokens.*input\.1 has 9 tokens") as error:
        await engine.tokenize_inputs(["a", "a b c a b c a"])
    assert error.value.param == "input.1"
    (end,) = await engine.tokenize_inputs(["a b c a"], max_tokens=4, truncate="end")
    (begin,) = await engine.tokenize_inputs(["a b c a"], max_tokens=4, truncate="start")
    assert (end.ids, begin.ids) == ((0, 3, 4, 1), (0, 5, 3, 1))
    with pytest.raises(ContextLengthExceeded, match="9 tokens"):
        await engine.embed([EncoderInput((3,) * 9)])


async def test_a_prompt_comes_first(start: Callable[..., EncoderEngine]) -> None:
    """A prompt is put before the text; where the model does not pool it, its tokens are counted."""
    (text,) = await start().tokenize_inputs(["a"], prompt="q: ")
    assert text == EncoderInput((0, 6, 3, 1))
    config = EncoderConfig(("embed",), 8, ("mean",), pool_prompt=False)
    (text,) = await start(config).tokenize_inputs(["a"], prompt="q: ")
    assert text == EncoderInput((0, 6, 3, 1), unpooled=2)


async def test_wrong_inputs_are_refused(start: Callable[..., EncoderEngine]) -> None:
    """An input needs tokens that the model has; a task, a model for it; and an encoder generates nothing."""
    engine = start()
    for ids in ((), (7,), (-1,)):
        with pytest.raises(InvalidRequest, match=r"input\.1"):
            await engine.embed([EncoderInput((3,)), EncoderInput(ids)])
    with pytest.raises(InvalidRequest, match="token types"):
        await engine.embed([EncoderInput((3,), (0, 1))])
    with pytest.raises(ModelCannotEncode, match="does not classify; it can embed"):
        await engine.classify([EncoderInput((3,))])
    with pytest.raises(ModelCannotGenerate):
        engine.stream([])
    with pytest.raises(ModelCannotGenerate):
        await engine.encode_chat([Message("user", "a")])


async def test_a_text_that_fails_fails_alone(start: Callable[..., EncoderEngine], runner: Steps) -> None:
    """Requests that share a step with a text whose computation fails get their results."""
    engine = start()
    runner.go.clear()
    first = asyncio.create_task(engine.embed([EncoderInput((3,))]))
    await until(lambda: len(runner.steps) == 1)
    bad = asyncio.create_task(engine.embed([EncoderInput((2,)), EncoderInput((3,))]))
    good = asyncio.create_task(engine.embed([EncoderInput((4,))]))
    await asyncio.sleep(0.01)
    runner.go.set()
    assert [vector.tolist() for vector in [*await first, *await good]] == [[3], [4]]
    with pytest.raises(InternalError):
        await bad
    assert (await engine.embed([EncoderInput((5,))]))[0].tolist() == [5]


async def test_a_caller_that_leaves_frees_its_texts(start: Callable[..., EncoderEngine], runner: Steps) -> None:
    """Texts of a cancelled request that no step has taken are not computed."""
    engine = start(step_tokens=8)
    runner.go.clear()
    task = asyncio.create_task(engine.embed([EncoderInput((3, 3, 3))] * 50))
    await until(lambda: len(runner.steps) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    runner.go.set()
    await engine.embed([EncoderInput((4,))])
    assert sum(len(step) for step in runner.steps) <= 3


async def test_the_queue_is_bounded(start: Callable[..., EncoderEngine], runner: Steps) -> None:
    """A full queue refuses requests of its kind before it tokenizes, and takes others."""
    engine = start(max_queue=1, step_tokens=1)
    runner.go.clear()
    running = [asyncio.create_task(engine.embed([EncoderInput((3,))]))]
    await until(lambda: len(runner.steps) == 1)
    running.append(asyncio.create_task(engine.embed([EncoderInput((3,))])))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests):
        await engine.embed([EncoderInput((3,))])
    with pytest.raises(TooManyRequests):
        await engine.tokenize_inputs(["a"])
    running.append(asyncio.create_task(engine.embed([EncoderInput((3,))], background=True)))
    await asyncio.sleep(0)
    runner.go.set()
    assert len(await asyncio.gather(*running)) == 3


async def test_the_time_is_limited(start: Callable[..., EncoderEngine], runner: Steps) -> None:
    """A request that takes too long ends with an error."""
    engine = start(timeout=0.01)
    runner.go.clear()
    with pytest.raises(DeadlineExceeded):
        await engine.embed([EncoderInput((3,))])


async def test_closing_fails_what_is_left(start: Callable[..., EncoderEngine], runner: Steps) -> None:
    """An engine that is closed computes no further step, frees the model and takes no requests."""
    engine = start(step_tokens=1)
    runner.go.clear()
    task = asyncio.create_task(engine.embed([EncoderInput((3,))] * 9))
    await until(lambda: len(runner.steps) == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await asyncio.sleep(0.05)
    runner.go.set()
    with pytest.raises(Draining):
        await task
    await closing
    assert runner.closed
    assert not engine.alive
    with pytest.raises(Draining):
        await engine.embed([EncoderInput((3,))])
