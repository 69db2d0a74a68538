"""Grammars that a sequence's text must match: JSON Schemas, regular expressions and Lark grammars, with llguidance.

For each token that is sampled, a mask tells which ids the grammar allows. Tokens that it allows no alternative for
(names of properties, punctuation) are not sampled: they are fed together in one step, as forced tokens are.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.engine.gbnf import gbnf_to_lark
from runtime.engine.json_schema import rewritten
from runtime.errors import InternalError, InvalidRequest
from runtime.types import Grammar, ReasoningLimit

if TYPE_CHECKING:  # importing it takes 50 ms, which only requests with a grammar should wait for
    from llguidance import LLMatcher, LLTokenizer

MAX_DEFINITION_CHARACTERS = 100_000
"""Maximum length of a grammar's definition; one of this length is compiled in less than a second."""

_MAX_COMPILED = 256  # grammars in the cache
_SHOWN = 300  # characters of a library's message
_LIMIT = re.compile(r"limit|too (?:many|complex)", re.IGNORECASE)  # in the library's messages
_WORD = 32  # bits of a mask's word
_STEP_LEXER_FUEL = 100_000  # half of the library's limit of one step's work: no step takes more than 0.1 s
# As ``json.dumps`` writes it. With free white space small models write white space without an end.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class TokenizerSource(Protocol):
    """A tokenizer that can be written as ``tokenizer.json``."""

    def to_json(self) -> str:
        """Return the tokenizer as the content of a ``tokenizer.json``."""
        ...


class GrammarCompiler:
    """Compiles grammars for one model and keeps the last ones. Thread-safe; the tokenizer is read at first use.

    Args:
        tokenizer: the model's tokenizer.
        end_ids: ids of the tokens that end a text.
        vocabulary: number of the model's logits.
    """

    def __init__(self, tokenizer: TokenizerSource, *, end_ids: Collection[int], vocabulary: int) -> None:
        self._source = tokenizer
        self._end_ids = sorted(end_ids)
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[Any, ...], LLMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """Return a matcher at the start of a grammar. This takes up to a second, so no event loop should call it.

        Raises:
            InvalidRequest: the grammar is invalid, too long, too complex, or nothing matches it; the message names the
                request's field.
        """
        length = sum(len(part.definition) for part in (grammar, *grammar.parts))
        if length > MAX_DEFINITION_CHARACTERS:
            raise InvalidRequest(
                f"{grammar.field}: {length} characters are more than the limit of {MAX_DEFINITION_CHARACTERS}",
                param=grammar.field,
            )
        key = grammar.key
        if not self._end_ids:
            raise InvalidRequest(f"{grammar.field}: this model has no token that ends a text", param=grammar.field)
        with self._lock:
            tokenizer = self._tokenizer
            if tokenizer is None:
                tokenizer = self._tokenizer = self._read_tokenizer()
            compiled = self._compiled.get(key)
            if compiled is not None:
                self._compiled.move_to_end(key)
        if compiled is None:
            compiled = _compiled(tokenizer, grammar)
            with self._lock:
                self._compiled[key] = compiled
                while len(self._compiled) > _MAX_COMPILED:
                    self._compiled.popitem(last=False)
        words = -(-tokenizer.vocab_size // _WORD)
        return GrammarMatcher(
            compiled.deep_copy(), grammar.field, self._vocabulary, words, frozenset(self._end_ids), grammar.reasoning
        )

    def _read_tokenizer(self) -> LLTokenizer:
        """Read the tokenizer, extended to the model's vocabulary if it is smaller."""
        from llguidance import LLTokenizer

        text = self._source.to_json()
        try:
            return LLTokenizer(text, n_vocab=self._vocabulary, eos_token=self._end_ids)
        except ValueError:  # it has more tokens than the model
            return LLTokenizer(text, eos_token=self._end_ids)


class GrammarMatcher:
    """The state of a sequence's grammar.

    Args:
        matcher: the library's matcher at the start of the grammar.
        field: the request's field that holds the grammar, for error messages.
        vocabulary: number of the model's logits.
        words: number of 32-bit words of the library's masks.
        end_ids: ids of the tokens that end a text.
        reasoning: limit on the reasoning at the start of the text; None for none.

    Attributes:
        matcher: the library's matcher, which has consumed the generated and the forced tokens.
        forced: the tokens that the grammar forces next.
        words: number of 32-bit words of the library's masks.
        used_words: number of them that the model's vocabulary takes.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        field: str,
        vocabulary: int,
        words: int,
        end_ids: Collection[int],
        reasoning: ReasoningLimit | None = None,
    ) -> None:
        self.matcher = matcher
        self.forced: list[int] = []
        self.words = words
        self.used_words = -(-vocabulary // _WORD)
        self._field = field
        self._limit = reasoning  # None once the reasoning has ended
        self._reasons = reasoning is not None and reasoning.begin is None
        self._accepted = 0
        self._vocabulary = vocabulary
        self._end_ids = end_ids
        self._extend()
        self._check()

    @property
    def ends(self) -> bool:
        """Whether the text ends with the tokens in ``forced``: the grammar allows nothing behind them."""
        return bool(self.matcher.is_stopped())

    def mask(self) -> NDArray[np.int32]:
        """Return [ceil(vocabulary / 32)] int32 with a bit for each token id that may follow the forced tokens."""
        mask = np.zeros(self.words, np.int32)
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        return mask[: self.used_words]

    def ban(self, mask: NDArray[np.int32], ids: Collection[int]) -> None:
        """Remove token ids from a mask, unless it allows nothing else."""
        words = mask.view(np.uint32)
        before = {token // _WORD: int(words[token // _WORD]) for token in ids}
        for token in ids:
            words[token // _WORD] = int(words[token // _WORD]) & ~(1 << token % _WORD)
        if not words.any():
            for word, bits in before.items():
                words[word] = bits

    def accept(self, tokens: Sequence[int]) -> None:
        """Advance by generated tokens.

        Args:
            tokens: the tokens that were appended to the sequence; an end token is ignored.

        Raises:
            InvalidRequest: the grammar became too complex.
            InternalError: the grammar does not allow the tokens.
        """
        given = list(tokens)
        if given and given[-1] in self._end_ids:
            given.pop()
        self._accepted += len(given)
        if self._limit is not None:
            self._reasons = self._reasons or self._limit.begin in given
            if self._limit.end in given:
                self._limit, self._reasons = None, False
        ahead = min(len(given), len(self.forced))
        if given[:ahead] != self.forced[:ahead]:
            raise InternalError("a token that the grammar forces was not generated")
        del self.forced[:ahead]
        if given[ahead:]:
            self.matcher.consume_tokens(given[ahead:])
            self._check()
            self._extend()
        self._check()

    def valid(self, drafts: Sequence[int]) -> int:
        """Return how many of the drafts, from the first, the grammar allows. No tokens must be forced."""
        found = next((i for i, token in enumerate(drafts) if token in self._end_ids), len(drafts))
        if self._limit is not None:  # the token behind the last draft cannot be forced in the same step
            if self._reasons:
                found = min(found, max(0, self._limit.tokens - self._accepted - 1))
            elif self._limit.begin in drafts:
                found = min(found, drafts.index(self._limit.begin))
        return min(found, int(self.matcher.validate_tokens(list(drafts))))

    def _check(self) -> None:
        """Raise an error if the library has given up.

        Raises:
            InvalidRequest: the grammar became too complex.
            InternalError: the library failed otherwise, for example because of a token that the grammar does not allow.
        """
        if not self.matcher.is_error():
            return
        message = f"{self._field}: {_shortened(self.matcher.get_error())}"
        if _LIMIT.search(message):
            raise InvalidRequest(message, param=self._field)
        raise InternalError(message)

    def _extend(self) -> None:
        """Find the tokens that must follow, and consume them. Errors show in the next ``_check``."""
        if self.matcher.is_stopped():
            return
        tokens = self.matcher.compute_ff_tokens()
        limit = self._limit
        due = limit is not None and self._reasons and not tokens and self._accepted >= limit.tokens
        if limit is not None and due and self.matcher.validate_tokens([limit.end]):  # else a character is incomplete
            self._limit, self._reasons, tokens = None, False, [limit.end]
        known = next((i for i, token in enumerate(tokens) if not 0 <= token < self._vocabulary), len(tokens))
        if tokens[:known]:
            self.matcher.consume_tokens(tokens[:known])
            self.forced += tokens[:known]


def _compiled(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """Compile a grammar.

    Raises:
        InvalidRequest: it cannot be compiled; the error names the part that cannot.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(step_lexer_fuel=_STEP_LEXER_FUEL)
    try:
        matcher = LLMatcher(tokenizer, _definition(grammar), log_level=0, limits=limits)
        fault = matcher.get_error()
        if not fault:
            matcher.compute_bitmask()  # finds out whether anything matches
            fault = "nothing matches it" if matcher.is_stopped() and not matcher.is_accepting() else matcher.get_error()
    except (ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        for part in grammar.parts:
            _compiled(tokenizer, part)
        raise InvalidRequest(f"{grammar.field}: {_shortened(fault)}", param=grammar.field)
    return matcher


def _definition(grammar: Grammar) -> str:
    """Return a grammar in the library's form: a list of grammars that refer to each other by name."""
    parts = [_named(part) | {"name": f"part{i}"} for i, part in enumerate(grammar.parts)]
    return json.dumps({"grammars": [_named(grammar), *parts]})


def _named(grammar: Grammar) -> dict[str, Any]:
    """Return a grammar without its parts as a member of the library's list."""
    from llguidance import LLMatcher

    if grammar.kind == "lark":
        return {"lark_grammar": grammar.definition}
    if grammar.kind == "gbnf":
        return {"lark_grammar": gbnf_to_lark(grammar.definition)}
    if grammar.kind == "regex":
        converted = LLMatcher.grammar_from_regex(grammar.definition)
    else:
        schema = rewritten(json.loads(grammar.definition))
        options: Any = _JSON_OPTIONS
        converted = LLMatcher.grammar_from_json_schema(
            {"allOf": [schema]} if isinstance(schema, bool) else schema, options
        )
    (member,) = json.loads(converted)["grammars"]
    return dict(member)


def _shortened(message: str) -> str:
    return " ".join(message.split())[:_SHOWN] or "invalid"
