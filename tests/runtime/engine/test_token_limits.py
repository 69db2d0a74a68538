"""runtime.engine.token_limits: allowed token ids and bad words, alone and on every engine."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.sequence import Row, Sequence
from runtime.engine.token_limits import TokenLimits, token_limits
from runtime.engine.token_masks import TokenMasks
from runtime.errors import InvalidRequest
from runtime.types import Grammar, Job, SamplingParams, Token
from tests.support.engines import Load, needs_kernels, without_kernels
from tests.support.grammars import allowed

END = 9


def limits(**params: Any) -> TokenLimits | None:
    """The limits of a vocabulary of 40 letters, whose tokens are their codes modulo 32."""
    made = SamplingParams(max_new_tokens=4, **params)
    return token_limits(made, 40, (END,), lambda text: [ord(letter) % 32 for letter in text])


def test_no_limits() -> None:
    """A request without limits has none."""
    assert limits() is None


def test_allowed_ids_are_the_bits_of_the_mask() -> None:
    """Each allowed id is a bit of the mask, which has whole words of 32 bits."""
    made = limits(allowed_token_ids=(0, 31, 32, 39))
    assert made is not None
    assert made.mask is not None
    assert len(made.mask) == 2
    assert allowed(made.mask) == [0, 31, 32, 39]


def test_the_end_of_a_bad_word_is_banned() -> None:
    """Only behind its other tokens, and only if all of these were generated; a word of one token always is."""
    made = limits(bad_words=("abc", "d"))
    assert made is not None
    assert made.bad_words == ((1, 2, 3), (0, 1, 2, 3), (4,), (0, 4))
    assert made.banned([7, 1, 2], 2) == {3, 4}
    assert made.banned([7, 1, 2], 1) == {4}
    assert made.banned([2, 1], 2) == {4}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"allowed_token_ids": (4,), "bad_words": ("d",)}, "allowed_token_ids"),
        ({"allowed_token_ids": (END,), "min_new_tokens": 1}, "allowed_token_ids"),
        ({"allowed_token_ids": (4,), "grammar": Grammar("regex", "a", "guided_regex")}, "allowed_token_ids"),
        ({"bad_words": ("d",), "grammar": Grammar("regex", "a", "guided_regex")}, "bad_words"),
    ],
)
def test_limits_that_leave_nothing_are_refused(params: dict[str, Any], field: str) -> None:
    """So are those beside a grammar, with which they could leave nothing."""
    with pytest.raises(InvalidRequest) as caught:
        limits(**params)
    assert caught.value.param == field


def test_every_choice_of_a_row_has_the_mask() -> None:
    """A row of a sequence with allowed ids has the mask for each token that it samples, and none if it samples none."""
    made = limits(allowed_token_ids=(1, 2))
    sequence = Sequence((5,), SamplingParams(max_new_tokens=4), 0, limits=made)
    row, prompt_chunk = Row(sequence, 0, [5, 1, 2], drafts=2, samples=3), Row(sequence, 0, [5], samples=0)
    TokenMasks().fill([row, prompt_chunk])
    for index in range(3):
        mask = row.mask(index)
        assert mask is not None
        assert allowed(mask) == [1, 2]
    assert prompt_chunk.masks is None


@pytest.fixture(
    params=[pytest.param("native", marks=needs_kernels), "torch", "reference"],
)
def engine(request: pytest.FixtureRequest, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny Llama on each engine."""
    if request.param == "torch":
        without_kernels(monkeypatch)
    kind = "reference" if request.param == "reference" else "fast"
    return load(tiny_llama, dtype="float32", engine=kind, num_threads=2 if request.param == "torch" else 1)


async def answer(engine: Any, **params: Any) -> list[Token]:
    """The tokens of a greedy text."""
    made = SamplingParams(max_new_tokens=12, temperature=0, **params)
    async with aclosing(engine.stream([Job(await engine.encode("The licence of"), made)])) as stream:
        return [token async for token in stream]


async def test_only_allowed_tokens_are_generated(engine: Any) -> None:
    """Though others are more likely; their log-probabilities are still those of the whole vocabulary."""
    free = await answer(engine, logprobs=0)
    ids = tuple({50, 60, 70, 80} - {token.id for token in free})
    kept = await answer(engine, allowed_token_ids=ids, logprobs=0)
    assert {token.id for token in kept} <= set(ids)
    assert all(token.logprob is not None and token.logprob < -1 for token in kept)


@pytest.mark.parametrize("size", [1, 2])
async def test_bad_words_do_not_occur(engine: Any, size: int) -> None:
    """Neither a word of one token nor one of several that would be generated otherwise."""
    ids = [token.id for token in await answer(engine)]
    pieces = [tuple(ids[start : start + size]) for start in range(len(ids) - size)]
    texts = {piece: b"".join(map(engine.token_bytes, piece)).decode("utf-8", "replace") for piece in pieces}
    word, *_ = [piece for piece in pieces if await engine.encode_plain(texts[piece]) == piece]
    others = [token.id for token in await answer(engine, bad_words=(texts[word],))]
    assert others != ids
    assert word not in [tuple(others[start : start + size]) for start in range(len(others))]


async def test_stop_strings_and_control_tokens_in_the_text(engine: Any) -> None:
    """With include_stop the text ends with what ended it; without skip_special_tokens control tokens are shown."""
    tokens = await answer(engine)
    text, stop = "".join(token.text for token in tokens), tokens[3].id
    ended = await answer(engine, stop_token_ids=(stop,), include_stop=True)
    assert ended[-1].finish_reason == "stop"
    assert ended[-1].text == engine.token_bytes(stop).decode()
    ended = await answer(engine, stop=(text[4:9],), include_stop=True)
    assert "".join(token.text for token in ended) == text[:9]
    control = next(i for i in range(engine.info.vocabulary_size) if not engine._tokenizer.has_text(i))
    for skip, shown in ((True, ""), (False, engine.token_bytes(control).decode())):
        bias = ((control, 100.0),)
        shown_tokens = await answer(engine, logit_bias=bias, ignore_eos=True, skip_special_tokens=skip)
        assert {token.text for token in shown_tokens} == {shown}
