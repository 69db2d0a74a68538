"""Choosing the next token: pure functions over logits, the same for every engine.

Randomness is counter-based: the number drawn for a token depends on the request's seed, the sequence's index within its
prompt and the token's position alone, never on what else runs, so that a seed gives the same tokens in any batch.
"""

from __future__ import annotations

import hashlib
import struct

import torch
from torch import Tensor

from runtime.types import SamplingParams


def uniform(seed: int, sequence: int, position: int) -> float:
    """A number in [0, 1) fixed by its arguments (53 bits of BLAKE2b, RFC 7693).

    Args:
        seed: any integer of 64 bits, signed or not.
        sequence: index of the sequence within its prompt.
        position: index of the token within the sequence's new tokens.
    """
    packed = struct.pack("<QQQ", seed & (2**64 - 1), sequence, position)
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 11) * 2.0**-53


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


def sample(logits: Tensor, params: SamplingParams, u: float) -> int:
    """The next token of one sequence.

    Temperature first, then top-k, then top-p over what is left (the order of transformers and of OpenAI's parameters),
    then inverse-CDF sampling: the first token, from the most likely down, at which the cumulative probability passes
    ``u``. Ties in the logits are kept in id order, so that the answer does not depend on the sort.

    Args:
        logits: [V].
        params: temperature, top_k and top_p are read.
        u: a number in [0, 1).

    Returns:
        A token id.
    """
    if params.temperature == 0:
        return int(logits.argmax())
    k = min(params.top_k, logits.shape[-1])
    if k:
        # topk gives no order among equals: take every logit that reaches the k-th, sort them stably, then cut.
        threshold = torch.topk(logits, k).values[-1]
        candidates = torch.nonzero(logits >= threshold).squeeze(1)
    else:
        candidates = torch.arange(logits.shape[-1], device=logits.device)
    values, order = torch.sort(logits[candidates].double() / params.temperature, descending=True, stable=True)
    if k:
        values, order = values[:k], order[:k]
    probabilities = torch.softmax(values, dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1)
    if params.top_p < 1:
        # A token stays while the probability before it has not yet reached p: at least one always does.
        kept = int((cumulative - probabilities < params.top_p).sum())
        cumulative = cumulative[: max(kept, 1)]
    index = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    return int(candidates[order[min(index, cumulative.shape[0] - 1)]])
