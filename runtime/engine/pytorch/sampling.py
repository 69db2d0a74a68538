"""Reference implementation of sampling: pure functions over the logits of one row, the same for every engine.

``runtime.engine.pytorch.batch_sampling`` gives the same results for all rows of a step in one pass on the device.

A row's logits are changed in this order: logit bias, repetition penalty, presence and frequency penalties, banned ids,
the grammar's mask.
Then temperature, top-k, top-p and min-p apply (the order of transformers), and the token is drawn by inverse CDF from
the most likely token down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Draw:
    """The inputs for sampling one token, except its logits.

    Args:
        params: the sampling parameters.
        u: the token's random number in [0, 1).
        tokens: prompt and generated token ids; used by the repetition penalty only.
        counts: number of times each id was generated; used by the presence and frequency penalties only.
        banned: ids that must not be sampled.
        bias: (token id, number to add to its logit).
        mask: [ceil(V / 32)] int32 with a bit for each id that may be sampled; None for all.
    """

    params: SamplingParams
    u: float
    tokens: Sequence[int] = ()
    counts: Mapping[int, int] | None = None
    banned: Sequence[int] = ()
    bias: Sequence[tuple[int, float]] = ()
    mask: NDArray[np.int32] | None = None


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of tokens already seen (arXiv:1909.05858 section 4.1).

    Args:
        logits: [V] logits, changed in place.
        seen: [N] prompt and generated token ids, without padding.
        penalty: repetition penalty; 1 changes nothing, above 1 discourages repetition.

    Returns:
        The same ``logits``.
    """
    if penalty != 1.0:
        values = logits[seen]
        logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
    return logits


def adjust(logits: Tensor, draw: Draw) -> Tensor:
    """Apply bias, penalties and bans to one row's logits.

    Args:
        logits: [V] the model's unmodified logits; not changed.
        draw: the row's sampling inputs.

    Returns:
        [V] float32 logits.
    """
    params, logits = draw.params, logits.float().clone()
    for token, bias in draw.bias:
        logits[token] += bias
    if draw.tokens:
        penalize_repetition(logits, torch.tensor(draw.tokens, device=logits.device), params.repetition_penalty)
    for token, count in (draw.counts or {}).items():
        logits[token] -= params.presence_penalty + params.frequency_penalty * count
    for token in draw.banned:
        logits[token] = float("-inf")
    if draw.mask is not None:
        logits[~unpacked(draw.mask[None], len(logits))[0].to(logits.device)] = float("-inf")
    return logits


def unpacked(masks: NDArray[np.int32], vocabulary: int) -> Tensor:
    """Return masks as booleans.

    Args:
        masks: [B, ceil(V / 32)] int32, the lowest bit first.
        vocabulary: V.

    Returns:
        [B, V] bool on the CPU.
    """
    bits = np.unpackbits(np.ascontiguousarray(masks).view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(bits).bool()


def sample(logits: Tensor, params: SamplingParams, u: float) -> int:
    """Sample a token: the first, from the most likely down, at which the cumulative kept probability exceeds ``u``.

    Equal logits are in id order, so that the result does not depend on the sort.

    Args:
        logits: [V] logits after ``adjust``.
        params: sampling parameters; temperature, top_k, top_p and min_p (relative to the most likely token) are used.
        u: a random number in [0, 1).

    Returns:
        A token id.
    """
    if params.temperature == 0 or bool(logits.max() == float("-inf")):
        return int(logits.argmax())
    values, order = torch.sort(logits.float(), descending=True, stable=True)
    values = values[: params.top_k or None].double()
    weights = torch.exp((values - values[0]) / params.temperature)  # 1 for the most likely token
    cumulative = torch.cumsum(weights, dim=-1)
    kept = len(weights)
    if params.top_p < 1:
        # A token is kept if the probability before it has not yet reached p, so at least one is kept.
        kept = min(kept, int((cumulative - weights < params.top_p * cumulative[-1]).sum()))
    if params.min_p > 0:
        kept = min(kept, int((weights >= params.min_p).sum()))
    kept = max(kept, 1)
    index = int(torch.searchsorted(cumulative[:kept], u * cumulative[kept - 1], right=True))
    return int(order[min(index, kept - 1)])


def log_probabilities(logits: Tensor, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the model's own log-probabilities of the sampled token and of the most likely ones.

    Args:
        logits: [V] the model's unmodified logits, before ``adjust``.
        token: the sampled token's id.
        top: number of most likely tokens to report.

    Returns:
        The token's log-probability (natural logarithm), and (id, log-probability) of the most likely tokens, best
        first, ties in id order.
    """
    values = torch.log_softmax(logits.float(), dim=-1)
    order = torch.sort(logits.float(), descending=True, stable=True).indices[:top]
    return float(values[token]), tuple((int(i), float(values[i])) for i in order)
