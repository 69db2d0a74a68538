"""How a family's checkpoints name and arrange the tensors that the decoder reads.

Everything here is undone once, when a model is loaded; the decoder itself has one arrangement, that of
``runtime.model.tensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

QKVOrder = Literal["blocks", "heads", "groups"]


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """Names and arrangement of a checkpoint's tensors.

    Args:
        names: name of each part's module in the checkpoint, with ``{i}`` for the layer's index, without ``.weight``.
            Parts are the names of ``runtime.model.tensors`` without the layer's index; ``q``, ``k`` and ``v`` where
            the checkpoint has them apart instead of ``qkv``, and ``gate`` and ``up`` instead of ``gate_up``. In layers
            with experts, ``shared_expert_gate``, ``shared_expert_up`` (or ``shared_expert_gate_up``) and
            ``shared_expert_down`` are the MLP of the shared expert, and ``experts_gate``, ``experts_up`` (or
            ``experts_gate_up``) and ``experts_down`` those of the experts: with ``{e}`` for the expert's index if each
            has a tensor of its own, without it if those of all experts are one tensor [E, outputs, inputs].
        plain: parts whose name is the whole name of the tensor, without ``.weight``.
        transposed: parts whose matrices are [inputs, outputs] (GPT-2's Conv1D).
        qkv_order: order of the rows of a joint ``qkv``: all queries, all keys, all values; or, for each head, its
            query, key and value (GPT-NeoX, BLOOM); or, for each key head, its queries, its key and its value (Falcon).
        interleaved_rotation: whether values 2i and 2i + 1 of a head are rotated together; rows are then rearranged.
        norm_offset: added to the weights of all norms (Gemma: 1).
        position_offset: rows of the position embeddings that come before that of position 0 (OPT: 2).
        ignored: patterns of tensors that the decoder does not need, matched from the start of the name.
        prefixes: prefixes that all names of the decoder may have or lack, besides those of training wrappers; the first
            is the usual one.
        biases: parts that have a bias; None if those do that have one in any layer of the checkpoint.
        renamed: for patterns of beginnings of names in checkpoints of other versions, what they are called in
            ``names``, as for ``re.sub``.
        stacked: names of ``experts_gate_up`` and ``experts_down`` in checkpoints that have those of all experts in one
            tensor, where ``names`` has one for each expert; whole names, as in ``plain``.
    """

    names: Mapping[str, str]
    plain: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    qkv_order: QKVOrder = "blocks"
    interleaved_rotation: bool = False
    norm_offset: float = 0.0
    position_offset: int = 0
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    biases: frozenset[str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, str] = field(default_factory=dict)
