from __future__ import annotations

from random import Random

import pytest

from loadtests.load.prompts import WORDS, Prompts, calibrated


def test_prompts_of_a_run_begin_differently() -> None:
    """So that no prefix cache can help; the lengths and the rest are those of the seed."""
    prompts = Prompts(salt=1)
    texts = [prompts.text(50, Random(7), f"{number}") for number in range(2_000)]
    assert {len(text.split()) for text in texts} == {50}
    assert len({" ".join(text.split()[:6]) for text in texts}) == 2_000
    assert len({" ".join(text.split()[6:]) for text in texts}) == 1


def test_another_run_has_other_prompts() -> None:
    """With the same seed too, unless their salt is the same."""
    first, again, other = (Prompts(salt).text(20, Random(1), "0") for salt in (1, 1, 2))
    assert first == again
    assert first.split()[:6] != other.split()[:6]
    assert first.split()[6:] == other.split()[6:]


def test_lengths_fit_the_servers_tokenizer() -> None:
    """A tokenizer that makes 1.5 tokens of a word behind a template of 30, asked twice."""
    prompts = calibrated(0, (20, 200), (60, 330))
    assert (prompts.tokens_per_word, prompts.template_tokens) == (1.5, 30.0)
    assert len(prompts.text(330, Random(1), "", template=True).split()) == 200
    assert len(prompts.text(300, Random(1), "").split()) == 200
    assert len(prompts.text(1, Random(1), "", template=True).split()) == 1
    with pytest.raises(ValueError, match="usage"):
        calibrated(0, (20, 200), (0, 0))


def test_the_words_are_different() -> None:
    """Two that are the same would make prompts more alike than they seem."""
    assert len(set(WORDS)) == len(WORDS) > 200
