"""Generation of a batch of sequences with transformers' own ``generate``, for the reference engine.

Rows are batched if that does not change their results, see ``runtime.engine.pytorch.padding``. Tokens are sampled
inside the generation loop, so seeds, limits, stop strings and cancellation work per row.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from runtime.device import release_memory
from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.engine.grammar import GrammarMatcher
from runtime.engine.pytorch.padding import Batching, RotaryState, batching, left_padded
from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, sample
from runtime.engine.rng import uniform
from runtime.engine.token_limits import TokenLimits
from runtime.errors import InternalError
from runtime.model.tokenizer import Tokenizer
from runtime.types import FinishReason, SamplingParams, Token

_PROBE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun as if nothing had happened."

Deliver = Callable[[list[Token]], bool]
"""Called with one step's tokens; returns whether to continue."""


@dataclass(slots=True)
class BatchRow:
    """The state of one sequence of a request."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    index: int  # index within its prompt
    sequence: int  # index within its request
    detokenizer: IncrementalDetokenizer
    grammar: GrammarMatcher | None = None
    limits: TokenLimits | None = None
    ids: list[int] = field(default_factory=list)
    reported: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())  # logprob, top_logprobs of the last id
    done: bool = False

    def draw(self, end_tokens: frozenset[int]) -> Draw:
        """Return the sampling inputs of the row's next token, except the logits."""
        params, position = self.params, len(self.ids)
        forced = params.forced[position:] if self.grammar is None else self.grammar.forced
        ends = params.end_ids(end_tokens)
        ban_end = len(params.forced) <= position < params.min_new_tokens
        mask = None
        if self.grammar is not None and not forced:
            mask = self.grammar.mask()
            if ban_end:
                self.grammar.ban(mask, ends)
        banned = set(ends) if ban_end and self.grammar is None else set[int]()
        if self.limits is not None and not forced:
            mask = self.limits.mask
            banned |= self.limits.banned(self.ids, position)
        return Draw(
            params,
            uniform(self.seed, self.index, position),
            [*self.prompt, *self.ids] if params.repetition_penalty != 1 else (),
            Counter(self.ids) if params.presence_penalty or params.frequency_penalty else None,
            tuple(banned),
            params.bias(forced, 0),
            mask,
        )


class BatchGenerator:
    """Generates rows in batches on the calling thread. It is not thread-safe.

    Args:
        model: the transformers model.
        tokenizer: the model's tokenizer.
        device: the model's device.
        eos: token ids that end a row.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, device: str, eos: frozenset[int]) -> None:
        self.eos = eos
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        # Finished rows are fed this token until the others finish; the output is not used.
        self._pad = min(eos, default=0)
        model.generation_config = GenerationConfig()  # otherwise the model's own defaults apply to every call
        self._rotary = RotaryState(model)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        release_memory(self._device)

    def generate(self, rows: list[BatchRow], deliver: Deliver) -> None:
        """Generate rows in batches, and stop after a batch that was cancelled or aborted."""
        for group in self._groups(rows):
            self._rotary.restore()
            self._generate_batch(group, deliver)
            if not all(row.done for row in group):  # cancelled or aborted
                return

    def _groups(self, rows: list[BatchRow]) -> list[list[BatchRow]]:
        """Split rows into batches that do not change each other's results."""
        if len(rows) == 1 or self._batching == "padded":
            return [rows]
        if self._batching == "alone":
            return [[row] for row in rows]
        lengths = dict.fromkeys(len(row.prompt) for row in rows)
        return [[row for row in rows if len(row.prompt) == length] for length in lengths]

    @functools.cached_property
    def _batching(self) -> Batching:
        """How rows may be batched; determined by the first request with several rows, so that startup is not slower."""
        self._rotary.restore()
        return batching(self._model, self._tokenizer.encode(_PROBE) or [self._pad], self._pad)

    def _generate_batch(self, rows: list[BatchRow], deliver: Deliver) -> None:
        ids, mask = left_padded([row.prompt for row in rows], self._pad)  # [B, T] each
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=max(row.params.max_new_tokens for row in rows),
                    do_sample=False,
                    pad_token_id=self._pad,
                ),
                logits_processor=LogitsProcessorList([_SampleTokens(rows, self.eos)]),
                stopping_criteria=StoppingCriteriaList([_DeliverTokens(rows, self.eos, deliver)]),
            )


class _SampleTokens(LogitsProcessor):
    """Samples each row and masks all other tokens, so that the greedy loop takes the sampled one."""

    def __init__(self, rows: list[BatchRow], eos: frozenset[int]) -> None:
        self._rows = rows
        self._eos = eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        masked = torch.full_like(scores, float("-inf"))
        for i, row in enumerate(self._rows):
            if row.done:
                masked[i, 0] = 0
                continue
            if not bool(torch.isfinite(scores[i].max())):
                raise InternalError("the model produced logits that are not numbers")
            draw = row.draw(self._eos)
            token_id = sample(adjust(scores[i], draw), row.params, draw.u)
            if row.params.logprobs is not None:
                row.reported = log_probabilities(scores[i], token_id, row.params.logprobs)
            masked[i, token_id] = 0
        return masked


class _DeliverTokens(StoppingCriteria):
    """Detokenizes and delivers each step's tokens, and reports which rows are done."""

    def __init__(self, rows: list[BatchRow], eos: frozenset[int], deliver: Deliver) -> None:
        self._rows = rows
        self._eos = eos
        self._deliver = deliver

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # [B, T] -> [B]
        tokens = []
        for row, token_id in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.done:
                continue
            row.ids.append(token_id)
            if row.grammar is not None:
                row.grammar.accept([token_id])
            reason: FinishReason | None = None
            if token_id in row.params.end_ids(self._eos) and len(row.ids) > len(row.params.forced):
                text, reason = row.detokenizer.end(token_id), "stop"
            else:
                text = row.detokenizer.push(token_id)
                if not row.detokenizer.stopped and len(row.ids) >= row.params.max_new_tokens:
                    text, reason = text + row.detokenizer.flush(), "length"
                if row.detokenizer.stopped:
                    reason = "stop"
            row.done = reason is not None
            logprob, top = row.reported
            stop = row.detokenizer.stop_string
            tokens.append(Token(row.sequence, token_id, text, reason, logprob, top, stop=stop))
        proceed = self._deliver(tokens)
        return torch.tensor([row.done or not proceed for row in self._rows], device=input_ids.device)
