"""Limits on a text's tokens that its request alone determines: allowed token ids, and words that must not occur."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InvalidRequest
from runtime.types import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The limits of one text.

    Args:
        mask: [ceil(vocabulary / 32)] int32 with a bit for each token id that is allowed; None if all are.
        bad_words: the tokens of the texts that must not occur.
    """

    mask: NDArray[np.int32] | None
    bad_words: tuple[tuple[int, ...], ...]

    def banned(self, tokens: Sequence[int], generated: int) -> set[int]:
        """Return the ids of the tokens that would complete a bad word.

        Args:
            tokens: the tokens so far.
            generated: the number of them, from the end, that were generated; a bad word does not begin before these.
        """
        end = len(tokens)
        return {
            last
            for *first, last in self.bad_words
            if len(first) <= generated and list(tokens[end - len(first) : end]) == first
        }


def token_limits(
    params: SamplingParams, vocabulary: int, ends: Collection[int], encode: Callable[[str], Sequence[int]]
) -> TokenLimits | None:
    """Return the limits that sampling parameters ask for; None if there are none.

    Args:
        params: the sampling parameters; their token ids are in the vocabulary.
        vocabulary: the number of the model's tokens.
        ends: ids of the tokens that end a sequence.
        encode: returns the token ids of a text, without control tokens.

    Raises:
        InvalidRequest: the limits may leave no token to generate, or there is a grammar, too.
    """
    allowed = set(params.allowed_token_ids)
    if not allowed and not params.bad_words:
        return None
    field = "allowed_token_ids" if allowed else "bad_words"
    if params.grammar is not None:
        raise InvalidRequest(
            f"{field}: it cannot be combined with structured output, tools or limited reasoning", param=field
        )
    spelled = [text for word in params.bad_words for text in (word, f" {word}")]
    bad_words = tuple(dict.fromkeys(tuple(encode(text)) for text in spelled))
    if not allowed:
        return TokenLimits(None, bad_words)
    excluded = {word[-1] for word in bad_words}.union(ends if params.min_new_tokens else ())
    if allowed <= excluded:
        raise InvalidRequest(f"{field}: bad words or the minimum number of tokens leave none of them", param=field)
    return TokenLimits(_mask(allowed, vocabulary), bad_words)


def _mask(ids: Collection[int], vocabulary: int) -> NDArray[np.int32]:
    import numpy as np

    bits = np.zeros(-(-vocabulary // 32) * 32, np.bool_)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)
