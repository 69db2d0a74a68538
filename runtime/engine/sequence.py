"""Data types shared by scheduler, engine thread and runner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.engine.rng import uniform
from runtime.types import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.engine.grammar import GrammarMatcher
    from runtime.engine.token_limits import TokenLimits


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence: a prompt and its generated tokens, with the sequence's state in the scheduler.

    Args:
        prompt: token ids, at least one.
        params: the sampling parameters.
        seed: seed of the random numbers, never None.
        number: index among the sequences of the same prompt; together with the seed it determines the random numbers.
        leader: the first sequence of the same prompt, whose prefill this one shares; None for the first itself.
        background: whether this is a background sequence, see ``Job``.
        grammar: the state of the grammar that the text must match; None for any text.
        limits: limits on the tokens; None for none.
        cache_salt: see ``Job``.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    number: int = 0
    leader: Sequence | None = None
    background: bool = False
    grammar: GrammarMatcher | None = None
    limits: TokenLimits | None = None
    cache_salt: str = ""

    tokens: list[int] = field(default_factory=list)  # prompt and generated tokens
    end_ids: frozenset[int] = frozenset()  # tokens that end it; set when it is added to the scheduler
    counts: Counter[int] = field(default_factory=Counter)  # generated tokens by id; kept only if a penalty needs it
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of those, tokens found in the prefix cache
    blocks: list[int] = field(default_factory=list)  # KV blocks in order of position; replaced, never changed in place
    num_cached_blocks: int = 0  # of those, leading blocks in the prefix cache
    cancelled: bool = False
    long_text: bool = False  # whether its keys are rotated by ``Rotation.long_frequencies``
    arrival: int = 0  # its place in the order of arrival; set when it is added to the scheduler
    preemptions: int = 0  # after one its prefix cache hits may be its own blocks and do not count

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def forced(self) -> Items[int]:
        """The tokens that must be generated next, by the request or by its grammar."""
        return self.params.forced[self.generated :] if self.grammar is None else self.grammar.forced

    def bias(self, ahead: int = 0) -> tuple[tuple[int, float], ...]:
        """The logit bias of the token ``ahead`` positions after the next one: (token id, number to add)."""
        return self.params.bias(self.forced, ahead)

    @property
    def penalized(self) -> bool:
        """Whether a penalty or bad words depend on the previous tokens, which rules out drafts."""
        params = self.params
        return bool(
            params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
            or (self.limits is not None and self.limits.bad_words)
        )

    def random(self, ahead: int = 0) -> float:
        """The random number in [0, 1) for the token ``ahead`` positions after the next one; 0 for greedy sampling."""
        return uniform(self.seed, self.number, self.generated + ahead) if self.params.temperature else 0.0

    @property
    def capacity(self) -> int:
        """Maximum KV positions: the prompt and all generated tokens but the last, which is never fed to the model."""
        return len(self.prompt) + self.params.max_new_tokens - 1


@dataclass(slots=True)
class Row:
    """One sequence's share of a step: tokens at consecutive positions ``start, start + 1, ...``.

    Args:
        sequence: the sequence.
        start: position of the first token; all earlier positions are in the KV cache.
        token_ids: tokens to feed: known tokens, then drafts.
        drafts: number of trailing ``token_ids`` that are draft tokens, or forced tokens, which are always accepted.
        forced: number of drafts, from the first, that are forced tokens.
        samples: number of tokens to sample, one after each of the last ``samples`` fed tokens: 0 for a prompt chunk
            that is not the last, 1 + drafts otherwise.
        banned: token ids that must not be sampled now: tokens that end the sequence, before ``min_new_tokens``, and
            those that complete a bad word.
        masks: [N, ceil(vocabulary / 32)] int32 with a bit for each token id that the grammar or the request allows, for
            the last N sampled tokens; the ones before them are forced. None if every id is allowed or all are forced.
    """

    sequence: Sequence
    start: int
    token_ids: list[int]
    drafts: int = 0
    samples: int = 1
    banned: tuple[int, ...] = ()
    forced: int = 0
    masks: NDArray[np.int32] | None = None

    def mask(self, index: int) -> NDArray[np.int32] | None:
        """Return the mask of a sampled token; None if every token id is allowed."""
        if self.masks is None or index < self.samples - len(self.masks):
            return None
        found: NDArray[np.int32] = self.masks[index - self.samples + len(self.masks)]
        return found


@dataclass(slots=True)
class Sampled:
    """One sampled token. ``logprob`` and ``top`` (token id, logprob; best first) are set if requested."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class StepInterrupted(Exception):
    """A step was interrupted because another thread asked for it."""
