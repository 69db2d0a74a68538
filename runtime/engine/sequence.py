"""The nouns that scheduler, engine thread and runner share: a sequence, its share of a step, what a step gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from runtime.engine.rng import uniform
from runtime.errors import ServiceError
from runtime.types import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One text in the making.

    Args:
        prompt: token ids, at least one.
        params: how its tokens are chosen.
        seed: of its random numbers, never None.
        number: its index among the sequences of its prompt; with the seed it fixes the random numbers.
        leader: the first sequence of the same prompt, whose prefill this one shares; None for the first itself.
        queued: see ``Job``.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    number: int = 0
    leader: Sequence | None = None
    queued: bool = False

    tokens: list[int] = field(default_factory=list)  # prompt and generated tokens
    counts: Counter[int] = field(default_factory=Counter)  # of generated tokens; kept only where a penalty reads it
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of those, tokens that came from the prefix cache
    blocks: list[int] = field(default_factory=list)  # KV blocks in order of position; replaced, never changed in place
    shareable: int = 0  # of those, leading blocks that are in the prefix cache
    cancelled: bool = False
    preempted: bool = False  # whether it ever was: what it finds in the prefix cache may then be its own

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def forced(self) -> tuple[int, ...]:
        """The tokens that come next whatever the model would choose."""
        return self.params.forced[self.generated :]

    @property
    def penalized(self) -> bool:
        """Whether a penalty reads the tokens so far, which rules drafts out."""
        params = self.params
        return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)

    def random(self, ahead: int = 0) -> float:
        """The random number in [0, 1) of the token so many places behind those generated; greedy ones need none."""
        return uniform(self.seed, self.number, self.generated + ahead) if self.params.temperature else 0.0

    @property
    def capacity(self) -> int:
        """Positions it may need: the whole prompt and all it may generate but the last token, which is never read."""
        return len(self.prompt) + self.params.max_new_tokens - 1


@dataclass(slots=True)
class Row:
    """One sequence's share of a step: tokens at consecutive positions ``start, start + 1, ...``.

    Args:
        sequence: whose.
        start: position of the first token; everything before it is in the cache.
        token_ids: what is fed; known tokens, then drafts.
        drafts: how many of ``token_ids`` are guesses, or forced tokens, which are right for certain.
        samples: tokens to choose, one behind each of the last ``samples`` fed tokens: 0 for a part of a prompt that
            is not its end, 1 + drafts otherwise.
        banned: token ids that may not be chosen now (end tokens, before ``min_new_tokens``).
    """

    sequence: Sequence
    start: int
    token_ids: list[int]
    drafts: int = 0
    samples: int = 1
    banned: tuple[int, ...] = ()


@dataclass(slots=True)
class Sampled:
    """One chosen token. ``logprob`` and ``top`` (token id, logprob; best first) are there if asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Runner(Protocol):
    """What runs a step on a device. One thread at a time calls it.

    A position of a sequence is stored at ``blocks[position // block_tokens]``, offset ``position % block_tokens``.
    """

    @property
    def block_tokens(self) -> int:
        """Positions in a KV block."""
        ...

    @property
    def blocks(self) -> int:
        """KV blocks there are, numbered from 0."""
        ...

    @property
    def block_bytes(self) -> int:
        """Memory of one KV block, all layers together."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens of one step, all rows together."""
        ...

    def step(self, rows: Items[Row]) -> list[list[Sampled] | ServiceError]:
        """Write the rows' keys and values, and choose tokens.

        The j-th choice of a row (from 0) uses the random number of position ``generated + j`` and assumes that the
        first j drafts are right; the caller keeps those for which that turns out true.

        Returns:
            For each row its choices, or why this row alone failed.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy all layers' keys and values of a block onto another."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...
