"""Determines which rows a transformers model can batch without changing their results, and pads them.

In most models a mask hides the padding of shorter rows from attention, and positions are counted from the mask. Some
models have no such mask, or one that does not reach every layer; in others the rotary frequencies depend on the longest
row of the batch; and some are wrong with more than one row (RWKV of transformers 5.23 when decoding).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

Batching = Literal["padded", "equal", "alone"]
"""``padded``: rows of any length, padded on the left; ``equal``: rows of equal length; ``alone``: one row per batch."""

# Allowed difference as a fraction of the logits' standard deviation. Another summation order makes a smaller
# difference; a shifted position or an unmasked padding token makes a larger one.
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.1  # for 16-bit dtypes
_STEPS = 3  # decoding steps of a trial, since a model may use the mask for the prompt only


def left_padded(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, so that every row's last token is in the last column.

    Args:
        prompts: the token ids of each prompt.
        filler: id of the padding; any id works if the mask hides it, so the model needs no padding token.

    Returns:
        Token ids and attention mask, [B, T] each; the mask is 1 for tokens and 0 for padding.
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), filler)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids, mask


def batching(model: Any, prompt: Sequence[int], filler: int) -> Batching:
    """Determine how a model's rows may be batched so that each gets the same logits as alone.

    This is a trial: the beginning of the prompt runs alone, with another row of equal length, and with the whole
    prompt, through ``generate`` like all requests. A short trial cannot prove the result for every length, so the model
    is inspected too: rows are not padded if it takes no ``attention_mask``, has a recurrent state (``_is_stateful``),
    or has rotary frequencies that depend on the length.

    Args:
        model: a transformers model.
        prompt: the token ids of any text.
        filler: id of the padding, see ``left_padded``.
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
    """Whether a module's rotary frequencies depend on the longest row of a batch.

    Dynamic NTK scaling does that, and LongRoPE (arXiv:2402.13753) with its two sets of factors.
    """
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in named)


class RotaryState:
    """Saves the initial rotary frequencies of a model and restores them before each batch.

    With dynamic scaling a module keeps the frequencies of the longest text so far, so that the result for a later text
    would depend on earlier ones.

    Args:
        model: a transformers model that has not run yet.
    """

    def __init__(self, model: Any) -> None:
        modules = [module for module in model.modules() if depends_on_length(module)]
        self._saved = [(module, dict(vars(module)), dict(module.named_buffers(recurse=False))) for module in modules]

    def restore(self) -> None:
        """Reset the model's rotary frequencies to their initial values."""
        for module, attributes, buffers in self._saved:
            vars(module).update(attributes)
            for name, buffer in buffers.items():
                setattr(module, name, buffer)


class _Always(LogitsProcessor):
    """Masks all tokens but one."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        only = torch.full_like(scores, float("-inf"))
        only[:, self._token_id] = 0
        return only


@torch.inference_mode()
def _logits(model: Any, prompts: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Return the float32 logits [steps, V] of the first row; generated tokens are forced to that row's first token."""
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
