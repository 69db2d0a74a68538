"""Which rows may be one batch of a model of transformers without changing each other's answers.

In most models a mask hides the padding of shorter rows from attention, and positions are counted from the mask. Some
have no such mask, or one that does not reach every layer; in others the frequencies of the rotary positions depend on
the longest row of the batch; and some are wrong with more than one row (RWKV of transformers 5.23 when decoding).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

Batching = Literal["padded", "equal", "alone"]
"""Rows of any length together, padded on the left; only those of equal length; or each row by itself."""

# Of the logits' standard deviation. Two orders of the same sums differ by less; a position too many, or a token of
# padding that is seen, makes more of a difference.
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.1  # of 16-bit numbers
_STEPS = 3  # of decoding, since a mask may be used for the prompt only


def left_padded(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch in which every row's next token is its last column.

    Args:
        prompts: token ids of each.
        filler: id of the padding; any will do where a mask hides it, so a model needs no padding token of its own.

    Returns:
        Ids and mask, [B, T] each; the mask is 1 where a row has a token.
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), filler)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids, mask


def batching(model: Any, prompt: Sequence[int], filler: int) -> Batching:
    """How a model's rows may be batched so that each gets the logits that it gets alone.

    It is tried: the beginning of the prompt is run alone, beside another row of its length, and beside the whole
    prompt, through ``generate`` as all requests are. What a short trial cannot prove for every length is told from the
    model: padding is not used without an ``attention_mask``, with a recurrent state (``_is_stateful``), or with rotary
    frequencies that depend on the length.

    Args:
        model: of transformers.
        prompt: some tokens of a text.
        filler: as of ``left_padded``.
    """
    size = max(1, len(prompt) // 4)
    short, other = prompt[:size], prompt[-size:]
    alone = _logits(model, [short], filler)
    tolerance = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE) * alone.std()

    def unchanged_beside(row: Sequence[int]) -> bool:
        return bool((_logits(model, [short, row], filler) - alone).abs().max() <= tolerance)

    if not unchanged_beside(other):
        return "alone"
    if (
        "attention_mask" not in inspect.signature(model.forward).parameters
        or getattr(model, "_is_stateful", False)
        or any(map(depends_on_length, model.modules()))
        or not unchanged_beside(prompt)
    ):
        return "equal"
    return "padded"


def depends_on_length(module: Any) -> bool:
    """Whether a module computes rotary frequencies by the longest row of a batch (dynamic NTK scaling, and LongRoPE of
    arXiv:2402.13753 with its two sets of factors).
    """
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in named)


class RotaryState:
    """The rotary frequencies that a new model has.

    With dynamic scaling a module keeps those of the longest text that it has seen, so that a later text in which it
    should compute others would depend on an earlier one.

    Args:
        model: of transformers, which has not run yet.
    """

    def __init__(self, model: Any) -> None:
        modules = [module for module in model.modules() if depends_on_length(module)]
        self._saved = [(module, dict(vars(module)), dict(module.named_buffers(recurse=False))) for module in modules]

    def restore(self) -> None:
        """Have the model forget every text."""
        for module, attributes, buffers in self._saved:
            vars(module).update(attributes)
            for name, buffer in buffers.items():
                setattr(module, name, buffer)


class _Always(LogitsProcessor):
    """Makes one token the only possible one."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        only = torch.full_like(scores, float("-inf"))
        only[:, self._token_id] = 0
        return only


@torch.inference_mode()
def _logits(model: Any, prompts: Sequence[Sequence[int]], filler: int) -> Tensor:
    """[steps, V] float32 logits of the first row, which goes on with its first token, repeated."""
    ids, mask = left_padded(prompts, filler)
    made = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=_STEPS,
            do_sample=False,
            pad_token_id=filler,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        logits_processor=LogitsProcessorList([_Always(prompts[0][0])]),
    )
    return torch.stack([logits[0].float() for logits in made.logits])
