"""A grammar compiler on a small tokenizer."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from runtime.engine.grammar import GrammarCompiler, GrammarMatcher
from runtime.loading.checkpoint_tokenizer import wrap
from runtime.types import Grammar
from tests.support.models import train_tokenizer

TOKENIZER = wrap(train_tokenizer())
VOCABULARY = 700  # more than the tokenizer has
END = TOKENIZER.eos_token_id or 0


def compiler(vocabulary: int = VOCABULARY) -> GrammarCompiler:
    """Return a compiler that has compiled nothing."""
    return GrammarCompiler(TOKENIZER, end_ids=[END], vocabulary=vocabulary)


def schema(definition: Any) -> Grammar:
    """Return the grammar of a JSON Schema."""
    return Grammar("json_schema", json.dumps(definition), "response_format")


def allowed(mask: np.ndarray) -> list[int]:
    """Return the ids that have a bit in a mask."""
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")).tolist()


def walk(matcher: GrammarMatcher, dice: random.Random, most: int = 400) -> str | None:
    """Return a text of tokens chosen evenly from what is allowed; None if it does not end within ``most`` tokens."""
    ids: list[int] = []
    for _ in range(most):
        if matcher.forced:
            ids.append(matcher.forced[0])
        elif matcher.ends:
            break
        else:
            choices = allowed(matcher.mask())
            assert choices
            assert max(choices) < VOCABULARY
            chosen = END if END in choices and dice.random() < 0.3 else dice.choice(choices)
            if chosen == END:
                break
            ids.append(chosen)
        matcher.accept(ids[-1:])
    else:
        return None
    return b"".join(map(TOKENIZER.token_bytes, ids)).decode()
