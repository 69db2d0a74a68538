"""Snapshots of random decoders, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor

from runtime.loading.gguf_blocks import pack_rows
from runtime.loading.snapshot_writer import Weight, hold
from runtime.model.block_formats import BlockKind
from runtime.model.config import DecoderConfig
from runtime.model.packing import SnapshotKind
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.tensors import matrices
from runtime.model.tokenizer import Tokenizer
from tests.support.gguf_models import random_blocks


def held(
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    kind: SnapshotKind,
    blocks: Mapping[str, tuple[BlockKind, tuple[int, int]]] | None = None,
) -> Snapshot:
    """Return a snapshot of a decoder.

    Args:
        config: the decoder.
        tensors: its weights by name.
        kind: the number type of its matrices; of ``gguf``, those of ``tensors`` are float32.
        blocks: the types and shapes of further matrices, which get random values.
    """

    def weight(name: str, values: NDArray[np.float32]) -> Weight:
        own = "float32" if kind == "gguf" else None
        return Weight(name, values.shape, name in matrices(config), lambda: values, kind=own)

    def block_weight(seed: int, name: str, block: BlockKind, shape: tuple[int, int]) -> Weight:
        rows = random_blocks(gguf.GGMLQuantizationType[block.upper()], *shape, seed=seed)
        whole = Weight(name, shape, True, lambda: np.empty(shape, np.float32), kind=block)
        return replace(whole, pack_rows=lambda first, last: pack_rows(rows[first:last], block))

    weights = [weight(name, tensor.numpy()) for name, tensor in tensors.items()]
    weights += [block_weight(i, name, *typed) for i, (name, typed) in enumerate((blocks or {}).items())]
    facts = Facts("random", None, "Random", 0, kind, config, (0,))
    return hold(facts, Tokenizer(Backend(BPE()), None, {}), weights)
