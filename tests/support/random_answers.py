"""Answers whose tokens are chosen at random from what a grammar allows, as an untrained model would write them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from handlers.generation.answer_parser import AnswerParser, message
from handlers.generation.tools import ToolUse
from runtime.answer_format import AnswerFormat
from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.engine.grammar import GrammarMatcher
from runtime.model.tokenizer import Tokenizer

_MOST = 2000  # tokens


def random_answer(
    matcher: GrammarMatcher, tokenizer: Tokenizer, form: AnswerFormat, use: ToolUse, dice: random.Random
) -> dict[str, Any]:
    """Return the message of a random answer; fails if it does not end."""
    end = tokenizer.eos_token_id or 0
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    parser = AnswerParser(form, use.names, calls_only=use.required, new_id=lambda: str(dice.random()))
    deltas: list[dict[str, Any]] = []
    for _ in range(_MOST):
        if matcher.forced:
            chosen = matcher.forced[0]
        elif matcher.ends:
            break
        else:
            bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
            choices = np.flatnonzero(bits).tolist()
            chosen = end if end in choices and dice.random() < 0.3 else dice.choice(choices)
            if chosen == end:
                break
        matcher.accept([chosen])
        deltas += parser.push(chosen, detokenizer.push(chosen))
    else:
        raise AssertionError("the answer does not end")
    return message([*deltas, *parser.finish()])
