"""Choosing the next token: pure functions over logits, the same for every engine.

They work on one row and define what is right; ``runtime.engine.pytorch.batch_sampling`` gives the same answers for all
rows of a step in one pass on the device.

A row's logits are changed in this order: logit bias, repetition penalty, presence and frequency penalties, banned ids.
Then temperature, top-k, top-p, min-p (the order of transformers), then the inverse CDF from the likeliest token down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row's choice depends on beside its logits.

    Args:
        params: how to choose.
        u: the row's random number in [0, 1).
        tokens: ids of the prompt and of what was generated; read by the repetition penalty only.
        counts: how often each id was generated; read by the presence and frequency penalties only.
        banned: ids that may not be chosen.
        place: number of the token within its sequence, from 0; read by forced tokens only.
    """

    params: SamplingParams
    u: float
    tokens: Sequence[int] = ()
    counts: Mapping[int, int] | None = None
    banned: Sequence[int] = ()
    place: int = 0


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of tokens already seen (arXiv:1909.05858 section 4.1).

    Args:
        logits: [V], changed in place.
        seen: [N] token ids of the prompt and what was generated, without padding.
        penalty: 1 changes nothing, above 1 discourages repetition.
    """
    if penalty != 1.0:
        values = logits[seen]
        logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
    return logits


def adjust(logits: Tensor, draw: Draw) -> Tensor:
    """One row's logits with bias, penalties and bans applied.

    Args:
        logits: [V] as the model gave them, left as they are.
        draw: the row's.

    Returns:
        [V] float32.
    """
    params, logits = draw.params, logits.float().clone()
    for token, bias in params.bias(draw.place):
        logits[token] += bias
    if draw.tokens:
        penalize_repetition(logits, torch.tensor(draw.tokens, device=logits.device), params.repetition_penalty)
    for token, count in (draw.counts or {}).items():
        logits[token] -= params.presence_penalty + params.frequency_penalty * count
    for token in draw.banned:
        logits[token] = float("-inf")
    return logits


def sample(logits: Tensor, params: SamplingParams, u: float) -> int:
    """The next token of one sequence: the first, from the likeliest down, at which the kept probability passes ``u``.

    Ties in the logits are in id order, so that the answer does not depend on the sort.

    Args:
        logits: [V].
        params: temperature, top_k, top_p and min_p (relative to the likeliest token) are read.
        u: a number in [0, 1).

    Returns:
        A token id.
    """
    if params.temperature == 0 or bool(logits.max() == float("-inf")):
        return int(logits.argmax())
    values, order = torch.sort(logits.float(), descending=True, stable=True)
    values = values[: params.top_k or None].double()
    weights = torch.exp((values - values[0]) / params.temperature)  # of the likeliest: 1
    cumulative = torch.cumsum(weights, dim=-1)
    kept = len(weights)
    if params.top_p < 1:
        # A token stays while the probability before it has not yet reached p: at least one always does.
        kept = min(kept, int((cumulative - weights < params.top_p * cumulative[-1]).sum()))
    if params.min_p > 0:
        kept = min(kept, int((weights >= params.min_p).sum()))
    kept = max(kept, 1)
    index = int(torch.searchsorted(cumulative[:kept], u * cumulative[kept - 1], right=True))
    return int(order[min(index, kept - 1)])


def log_probabilities(logits: Tensor, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """What the model itself gave a token and the likeliest ones.

    Args:
        logits: [V] as the model gave them, before ``adjust``.
        token: the chosen id.
        top: how many of the likeliest tokens to report.

    Returns:
        The token's log-probability in natural logarithms, and (id, log-probability) of the likeliest, best first, ties
        in id order.
    """
    values = torch.log_softmax(logits.float(), dim=-1)
    order = torch.sort(logits.float(), descending=True, stable=True).indices[:top]
    return float(values[token]), tuple((int(i), float(values[i])) for i in order)
