"""Model runner on PyTorch, for GPUs and for CPUs without compiled kernels."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from contextlib import nullcontext
from ctypes import c_int32
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.device import release_memory
from runtime.engine.core_share import CoreShare
from runtime.engine.pytorch.attention import PIECE_BLOCKS, Tiles, agreeing_widths, build_tiles
from runtime.engine.pytorch.batch import BatchPacker, Shape
from runtime.engine.pytorch.batch_sampling import sample_rows
from runtime.engine.pytorch.convolution import history_slots
from runtime.engine.pytorch.decoder import Batch, Decoder
from runtime.engine.pytorch.encoder import TorchEncoder
from runtime.engine.pytorch.kv_cache import BLOCK_TOKENS, PagedKV
from runtime.engine.pytorch.model import TorchModel, Weights
from runtime.engine.pytorch.sampling import Draw
from runtime.engine.sequence import Row, Sampled
from runtime.errors import InternalError, ServiceError
from runtime.model.config import DecoderConfig

_log = logging.getLogger("warmstart.load")

# Rows of the smallest product. Below about this many rows a GPU is limited by memory bandwidth, not by arithmetic.
_TILE = {"cpu": 8, "cuda": 128}
_WIDTHS = (1, 16, 128)


@dataclass(slots=True)
class _Graph:
    """A captured CUDA graph of one forward pass, with its input and output tensors."""

    graph: torch.cuda.CUDAGraph
    packed: Tensor
    logits: Tensor
    finite: Tensor


class TorchRunner:
    """Runs steps with the PyTorch decoder. Implements ``runtime.engine.runners.BenchRunner``.

    Args:
        config: the decoder's configuration.
        weights: tensors named as in ``runtime.model.tensors``, see ``TorchModel``; the runner uses dtype and device.
        kv_bytes: size of the KV cache in bytes.
        max_tokens: maximum tokens per step.
        deterministic: whether results are batch-invariant: no bit of a row's result depends on the other rows.
        graphs: whether decode steps are padded to few shapes, and captured as CUDA graphs on CUDA; by default on CUDA
            only.

    Raises:
        ValueError: ``kv_bytes`` is less than one KV block.
    """

    level = None

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        *,
        kv_bytes: int,
        max_tokens: int = 2048,
        deterministic: bool = True,
        graphs: bool | None = None,
    ) -> None:
        embed = weights["embed"]
        self._device, self._dtype = embed.device, embed.dtype
        self._config = config
        self.kv_dtype = str(self._dtype).removeprefix("torch.")
        self._group = config.heads // config.kv_heads
        self._max_tokens = max_tokens
        kind = self._device.type
        tile = _TILE.get(kind, 0) if deterministic else 0
        # The kernels of PyTorch have no soft cap, and on a CPU they are not batch-invariant.
        exact = bool(config.attention_softcap) or (deterministic and kind == "cpu")
        self._model = TorchModel(config, weights, tile=tile)
        self._decoder = Decoder(self._model, exact=exact)
        self._kv = PagedKV(config, kv_bytes, self._dtype, self._device)
        widths: tuple[int, ...] = _WIDTHS
        self._scores = torch.float32 if exact else self._dtype
        if exact and deterministic:
            agreeing = agreeing_widths(self._group, config.padded_head_dim, self._device)
            if not agreeing:
                _log.warning("attention on this device depends on the batch: results may depend on other requests")
            widths = agreeing or widths
        self._windows = {layer.window for layer in config.layers if layer.kind == "attention"}
        self._slopes = None
        if config.alibi_slopes:
            slopes = torch.tensor(config.alibi_slopes, dtype=torch.float32, device=self._device)
            self._slopes = slopes.view(config.kv_heads, self._group)
        self._packer = BatchPacker(
            block_tokens=BLOCK_TOKENS,
            spare=self._kv.blocks,
            widths=widths,
            tile=tile,
            piece=PIECE_BLOCKS,
            buckets=kind == "cuda" if graphs is None else graphs,
        )
        self._graphs: dict[Shape, _Graph] = {}

    @property
    def block_tokens(self) -> int:
        """Positions per KV block."""
        return BLOCK_TOKENS

    @property
    def blocks(self) -> int:
        """Number of KV blocks, numbered from 0."""
        return self._kv.blocks

    @property
    def block_bytes(self) -> int:
        """Size of one KV block in bytes, over all layers."""
        return self._kv.block_bytes

    @property
    def max_tokens(self) -> int:
        """Maximum tokens per step, over all rows."""
        return self._max_tokens

    @torch.inference_mode()
    def step(
        self, rows: Items[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        """Write the rows' keys and values to the KV cache and sample tokens, see ``Runner``; it is not interrupted."""
        logits, finite = self.forward(rows)
        chosen = iter(sample_rows(logits, [draw for row in rows for draw in _draws(row)]) if len(logits) else [])
        results: list[list[Sampled] | ServiceError] = []
        # If every row has one token, its logits show whether its values are finite.
        single = all(len(row.token_ids) == 1 for row in rows)
        good = None if single else finite.cpu()
        first = 0
        for row in rows:
            known = first + len(row.token_ids) - row.drafts
            failed = good is not None and not bool(good[first:known].all())
            first = known + row.drafts
            results.append(_result([next(chosen) for _ in range(row.samples)], failed))
        return results

    @torch.inference_mode()
    def forward(self, rows: Items[Row]) -> tuple[Tensor, Tensor]:
        """Run a forward pass and write the rows' keys and values to the KV cache.

        Returns:
            [S, V] logits for the tokens to sample, and [M] whether each fed token's values are finite, both in the
            order of the rows. Valid until the next call.
        """
        shape, flat = self._packer.pack(rows)
        # A graph is captured on the current device, which is set per thread.
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            logits, finite = self._replay(shape, flat) if self._captures(shape) else self._pass(shape, self._send(flat))
        return logits[: sum(row.samples for row in rows)], finite[: sum(len(row.token_ids) for row in rows)]

    @torch.inference_mode()
    def logits(self, rows: Items[Row]) -> NDArray[np.float32]:
        """Run a step and return its logits.

        Returns:
            [samples of all rows, vocabulary] the model's unmodified float32 logits.
        """
        logits: NDArray[np.float32] = self.forward(rows)[0].float().cpu().numpy()
        return logits

    def read(self, data: NDArray[np.float32]) -> None:
        """Read an array in the host's memory once with all threads, to measure memory bandwidth."""
        torch.from_numpy(data).sum()

    def copy_block(self, source: int, target: int) -> None:
        """Copy a KV block onto another, in all layers."""
        self._kv.copy_block(source, target)

    def encoder(self, max_tokens: int, share: CoreShare | None) -> TorchEncoder:
        """Return what computes the states of texts with the same weights. Arguments as for ``TorchEncoder``."""
        return TorchEncoder(self._model, max_tokens=max_tokens, share=share)

    def close(self) -> None:
        """Free the device's memory."""
        self._graphs.clear()
        del self._decoder, self._model, self._kv
        release_memory(self._device)

    def _captures(self, shape: Shape) -> bool:
        """Whether steps of a shape run as CUDA graphs."""
        return self._device.type == "cuda" and self._fixed(shape)

    def _fixed(self, shape: Shape) -> bool:
        """Whether steps of a shape run operations that a CUDA graph can capture."""
        return self._packer.buckets and shape.decoding

    def _send(self, flat: NDArray[np.int64]) -> Tensor:
        packed = torch.from_numpy(flat)
        if self._device.type == "cuda":  # a copy from pinned memory does not block this thread
            packed = packed.pin_memory()
        return packed.to(self._device, non_blocking=True)

    def _pass(self, shape: Shape, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Run one forward pass over a packed step on the device. This is the part that a CUDA graph captures."""
        ids, positions, long, slots, outputs, samples, *parts = torch.split(packed, shape.sizes)
        groups = [
            (tokens.view(rows, width), tables.view(rows, blocks))
            for (rows, width, blocks), tokens, tables in zip(shape.groups, parts[::2], parts[1::2], strict=True)
        ]
        tiles = {window: [self._tiles(*group, positions, window) for group in groups] for window in self._windows}
        taps = self._config.convolution_width
        history = history_slots(groups, positions, outputs, taps) if taps else None
        fixed = self._fixed(shape)
        return self._decoder(Batch(ids, positions, long, slots, outputs, samples, tiles, history, fixed), self._kv)

    def _tiles(self, tokens: Tensor, tables: Tensor, positions: Tensor, window: int) -> Tiles:
        return build_tiles(
            self._kv, tokens, tables, positions, self._group, self._scores, window=window, slopes=self._slopes
        )

    def _replay(self, shape: Shape, flat: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Run a packed step by replaying the CUDA graph of its shape, capturing it first if needed."""
        captured = self._graphs.get(shape)
        if captured is None:
            captured = self._graphs[shape] = self._capture(shape, self._send(flat))
        else:
            captured.packed.copy_(torch.from_numpy(flat).pin_memory(), non_blocking=True)
        captured.graph.replay()
        return captured.logits, captured.finite

    def _capture(self, shape: Shape, packed: Tensor) -> _Graph:
        """Capture a forward pass of this shape as a CUDA graph. ``packed`` becomes its fixed input buffer."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):  # warm-up: libraries initialize in the first call, which cannot be captured
            self._pass(shape, packed)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self._graphs.values()), None)
        # Other threads of the process may use the device at the same time, for another model.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits, finite = self._pass(shape, packed)
        return _Graph(graph, packed, logits, finite)


def _draws(row: Row) -> list[Draw]:
    """Return the sampling inputs of each token to sample for a row."""
    sequence, params = row.sequence, row.sequence.params
    return [
        Draw(
            params,
            sequence.random(j),
            sequence.tokens if params.repetition_penalty != 1 else (),
            sequence.counts if params.presence_penalty or params.frequency_penalty else None,
            row.banned,
            sequence.bias(j),
            row.mask(j),
        )
        for j in range(row.samples)
    ]


def _result(choices: list[Sampled | InternalError], failed: bool) -> list[Sampled] | ServiceError:
    """Return a row's result: its sampled tokens before the first failed one, or an error if there are none."""
    if failed:
        return InternalError("the model produced numbers that are not finite")
    good: list[Sampled] = []
    for choice in choices:
        if isinstance(choice, InternalError):
            return good or choice
        good.append(choice)
    return good
