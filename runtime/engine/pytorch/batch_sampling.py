"""Batched sampling: the results of ``runtime.engine.pytorch.sampling`` with one device synchronization for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from runtime.engine.pytorch.sampling import Draw, unpacked
from runtime.engine.sequence import Sampled
from runtime.errors import InternalError

# Number of each row's most likely tokens to consider. Only if the sampled token is not among them, which a flat
# distribution makes possible, is the whole vocabulary sorted, with a second device synchronization.
_CANDIDATES = 256


@dataclass(slots=True)
class _Inputs:
    """The rows' sampling parameters as flat lists, sent to the device in one copy. Logit indices are row * V + id."""

    sampled: list[float] = field(default_factory=list)  # rows that are not greedy
    numbers: list[float] = field(default_factory=list)  # for each of those: temperature, top_k, top_p, min_p, u
    reported: list[float] = field(default_factory=list)  # rows whose log-probabilities are requested
    biased: list[float] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    repeated: list[float] = field(default_factory=list)
    repetition: list[float] = field(default_factory=list)
    penalized: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    banned: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, draws: Sequence[Draw], vocabulary: int) -> _Inputs:
        """Collect the parameters of all rows."""
        inputs = cls()
        for row, draw in enumerate(draws):
            params, start = draw.params, row * vocabulary
            if params.temperature != 0:
                inputs.sampled.append(row)
                top_k = min(params.top_k, vocabulary) or vocabulary
                inputs.numbers += (params.temperature, top_k, params.top_p, params.min_p, draw.u)
            if params.logprobs is not None:
                inputs.reported.append(row)
            for token, bias in draw.bias:
                inputs.biased.append(start + token)
                inputs.biases.append(bias)
            if params.repetition_penalty != 1:
                seen = set(draw.tokens)
                inputs.repeated += [start + token for token in seen]
                inputs.repetition += [params.repetition_penalty] * len(seen)
            for token, count in (draw.counts or {}).items():
                inputs.penalized.append(start + token)
                inputs.penalties.append(params.presence_penalty + params.frequency_penalty * count)
            inputs.banned += [start + token for token in draw.banned]
        return inputs

    def upload(self, device: torch.device) -> list[Tensor]:
        """Copy the lists to the device, in order, as float64, which represents every logit index exactly."""
        lists = [getattr(self, name) for name in self.__slots__]
        flat = torch.tensor([value for values in lists for value in values], dtype=torch.float64)
        if device.type == "cuda":
            flat = flat.pin_memory()
        ends = list(accumulate(map(len, lists)))
        return list(flat.to(device, non_blocking=True).tensor_split(ends[:-1]))


def sample_rows(logits: Tensor, draws: Sequence[Draw]) -> list[Sampled | InternalError]:
    """Sample one token per row, with the results of ``adjust``, ``sample`` and ``log_probabilities``.

    Args:
        logits: [B, V] the model's unmodified logits; not changed.
        draws: the sampling inputs, one per row.

    Returns:
        For each row the sampled token, or an error if its logits are not finite.
    """
    if logits.device.type == "mps":  # MPS has no float64
        logits = logits.cpu()
    logits = logits.float()
    results, unsure = _choose(logits, draws, _CANDIDATES)
    if unsure:
        again, _ = _choose(logits[unsure], [draws[row] for row in unsure], logits.shape[1])
        for row, result in zip(unsure, again, strict=True):
            results[row] = result
    return results


def _choose(logits: Tensor, draws: Sequence[Draw], candidates: int) -> tuple[list[Sampled | InternalError], list[int]]:
    """Sample from each row's ``candidates`` most likely tokens; also return the rows for which those do not suffice."""
    vocabulary = logits.shape[1]
    candidates = min(candidates, vocabulary)
    inputs = _Inputs.of(draws, vocabulary)
    sampled, numbers, reported, *edits = inputs.upload(logits.device)
    sampled, reported = sampled.long(), reported.long()
    finite = torch.isfinite(logits.amax(dim=1))  # [B]; the maximum of a row with a NaN is NaN
    sure = torch.ones_like(finite)
    masked = [row for row, draw in enumerate(draws) if draw.mask is not None]
    edited = _edit(logits.clone(), edits) if masked or any(map(len, edits)) else logits
    if masked:
        masks = unpacked(np.stack([draw.mask for draw in draws if draw.mask is not None]), vocabulary)
        edited[torch.tensor(masked, device=logits.device)] += torch.where(masks, 0.0, -torch.inf).to(logits.device)
    choice = edited.argmax(dim=1)  # [B]; the first of equal logits
    if inputs.sampled:
        everything = vocabulary in inputs.numbers[1::5]
        choice[sampled], sure[sampled] = _draw(edited[sampled], numbers.view(-1, 5), candidates, everything)
    parts = [choice, finite, sure]
    if inputs.reported:
        raw = logits[reported]
        natural = torch.log_softmax(raw, dim=1)  # [R, V]
        tops, known = _likeliest(raw, candidates)
        tops = tops[:, : max(draws[int(row)].params.logprobs or 0 for row in inputs.reported)]  # [R, N]
        sure[reported] &= known.squeeze(1) >= tops.shape[1]
        parts += [natural.gather(1, choice[reported, None]), tops, natural.gather(1, tops)]
    answers = torch.cat([part.double().flatten() for part in parts]).tolist()  # the only synchronization
    rows = len(draws)
    return _results(answers, draws, inputs), [row for row in range(rows) if not answers[2 * rows + row]]


def _edit(logits: Tensor, edits: list[Tensor]) -> Tensor:
    """Apply bias, penalties and bans of all rows in place. An id occurs at most once per row in each list."""
    flat = logits.view(-1)
    biased, biases, repeated, repetition, penalized, penalties, banned = edits
    flat.index_put_((biased.long(),), biases.float(), accumulate=True)
    values = flat[repeated.long()]
    factors = repetition.float()
    flat[repeated.long()] = torch.where(values < 0, values * factors, values / factors)
    flat[penalized.long()] -= penalties.float()
    flat[banned.long()] = float("-inf")
    return logits


def _likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ids of the highest logits of each row, best first, ties in id order.

    Args:
        logits: [S, V].
        count: number of ids per row, at most V.

    Returns:
        [S, count] ids, and [S, 1] how many of the first ids are certain: among equal logits at the end, ``topk`` may
        return any.
    """
    if count == logits.shape[1]:
        ids = torch.sort(logits, dim=1, descending=True, stable=True).indices
        return ids, torch.full_like(ids[:, :1], count)
    ids = torch.topk(logits, count, dim=1, sorted=False).indices.sort(dim=1).values
    values, order = torch.sort(logits.gather(1, ids), dim=1, descending=True, stable=True)
    return ids.gather(1, order), (values > values[:, -1:]).sum(1, keepdim=True)


def _draw(logits: Tensor, numbers: Tensor, candidates: int, everything: bool) -> tuple[Tensor, Tensor]:
    """Do what ``sample`` does for all non-greedy rows, from each row's most likely candidates only.

    Args:
        logits: [S, V] logits after ``_edit``.
        numbers: [S, 5] float64: temperature, top_k, top_p, min_p, u of each row.
        candidates: number of tokens to consider; with V, every result is certain.
        everything: whether any row has no top-k.

    Returns:
        [S] ids, and [S] whether the id is certain to equal that of ``sample``.
    """
    vocabulary = logits.shape[1]
    temperature, top_k, top_p, min_p, u = numbers[:, :, None].unbind(1)  # [S, 1] each
    ids, known = _likeliest(logits, candidates)  # [S, C], [S, 1]
    values = logits.gather(1, ids).double()
    weights = torch.exp((values - values[:, :1]) / temperature)  # 1 for the most likely token
    weights = weights.masked_fill(torch.arange(candidates, device=logits.device) >= torch.minimum(top_k, known), 0)
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    if everything and candidates < vocabulary:
        every = logits.double().sub_(values[:, :1]).div_(temperature).exp_().sum(1, keepdim=True)
        total = torch.where(top_k == vocabulary, every, total)

    def count(kept: Tensor) -> Tensor:
        return kept.sum(1, keepdim=True)

    # Each filter keeps a prefix of the tokens. A token is kept if the probability before it has not yet reached p.
    kept = torch.where(top_p < 1, torch.minimum(top_k, count(cumulative - weights < top_p * total)), top_k)
    kept = torch.where(min_p > 0, torch.minimum(kept, count(weights >= min_p)), kept)
    # A cut within the certain tokens is exact; otherwise it is only known to lie behind them.
    cut = kept < known
    last = torch.minimum(kept, known).clamp(min=1).long() - 1
    target = u * torch.where(cut, cumulative.gather(1, last), total)
    unlimited = (top_k == vocabulary) & (top_p >= 1) & (min_p <= 0)
    within = cut | (unlimited & (target < cumulative[:, -1:]))
    right = (top_k <= known) | ((top_k == vocabulary) & within)
    index = torch.minimum(count(cumulative <= target), last)
    return ids.gather(1, index).squeeze(1), right.squeeze(1)


def _results(answers: list[float], draws: Sequence[Draw], inputs: _Inputs) -> list[Sampled | InternalError]:
    """Split the flat list that came from the device into one result per row."""
    rows, reports = len(draws), len(inputs.reported)
    results: list[Sampled | InternalError] = [
        Sampled(int(answers[row]))
        if answers[rows + row]
        else InternalError("the model produced logits that are not numbers")
        for row in range(rows)
    ]
    if not reports:
        return results
    own = answers[3 * rows :]
    width = (len(own) - reports) // (2 * reports)
    ids, values = own[reports : reports * (1 + width)], own[reports * (1 + width) :]
    for i, row in enumerate(map(int, inputs.reported)):
        result = results[row]
        if isinstance(result, Sampled):
            result.logprob = own[i]
            reported = range(i * width, i * width + min(width, draws[row].params.logprobs or 0))
            result.top = tuple((int(ids[index]), values[index]) for index in reported)
    return results
