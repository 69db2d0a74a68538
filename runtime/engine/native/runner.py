"""Model runner on the compiled kernels: reads packed weights in place and runs a whole step in one native call."""

from __future__ import annotations

from collections.abc import Sequence as Items
from ctypes import addressof, c_int32
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.block_pool import BLOCK_TOKENS as BLOCK_TOKENS
from runtime.engine.core_share import CoreShare
from runtime.engine.native import library
from runtime.engine.native.encoder import NativeEncoder
from runtime.engine.native.model import NativeModel
from runtime.engine.sequence import Row, Sampled, StepInterrupted
from runtime.errors import InternalError, ServiceError
from runtime.model.config import KVDType
from runtime.model.snapshot import Snapshot

_MAX_BLOCKS = 1 << 26  # ``kMaxBlocks`` of check.h; no model has a context that needs more


class NativeRunner(NativeModel):
    """Runs steps with the compiled CPU kernels. Implements ``runtime.engine.runners.BenchRunner``.

    Args:
        snapshot: the model; its arrays are read in place and kept.
        kv_bytes: maximum bytes of the KV cache; memory becomes resident only when it is written.
        kv_dtype: number type of keys and values; by default float32 for float32 weights, else float16.
        max_tokens: maximum tokens per step.
        threads: number of compute threads, including the caller's.
        kernels: the library to use; by default the best for this processor.

    Raises:
        RuntimeError: there are no kernels for this processor, or a tensor has another size than the configuration
            requires.
        MemoryError: ``kv_bytes`` is less than one block, or an allocation failed.
    """

    block_tokens = BLOCK_TOKENS

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        kv_bytes: int,
        max_tokens: int,
        threads: int,
        kv_dtype: KVDType | None = None,
        kernels: library.Kernels | None = None,
    ) -> None:
        config, kind = snapshot.facts.decoder, snapshot.facts.kind
        self.kv_dtype: KVDType = kv_dtype or ("float32" if kind == "float32" else "float16")
        self.block_bytes = config.kv_position_bytes(self.kv_dtype) * BLOCK_TOKENS
        self.blocks = min(kv_bytes // self.block_bytes, _MAX_BLOCKS)
        if not self.blocks:
            raise MemoryError(f"{kv_bytes} bytes for keys and values are too few: a block takes {self.block_bytes}")
        super().__init__(
            snapshot,
            kv_dtype=self.kv_dtype,
            blocks=self.blocks,
            max_tokens=max_tokens,
            threads=threads,
            kernels=kernels,
        )
        self._snapshot, self._threads, self._kernels = snapshot, threads, kernels  # for an encoder
        self._vocabulary = config.vocabulary
        self._ids = np.zeros(max_tokens, np.int32)
        self._outputs = np.zeros(max_tokens, np.int32)
        self._choices = np.zeros(max_tokens, library.CHOICE)
        self._chosen = np.zeros(max_tokens, library.CHOSEN)

    def step(
        self, rows: Items[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        """Write the rows' keys and values to the KV cache and sample tokens, see ``Runner``."""
        return self._step(rows, None, interrupt, resume=resume)

    def logits(self, rows: Items[Row]) -> NDArray[np.float32]:
        """Run a step and return its logits.

        Returns:
            [samples of all rows, vocabulary] the model's unmodified float32 logits.
        """
        found = np.empty((sum(row.samples for row in rows), self._vocabulary), np.float32)
        self._step(rows, found)
        return found

    def encoder(self, max_tokens: int, share: CoreShare | None) -> NativeEncoder:
        """Return what computes the states of texts with the same weights. Arguments as for ``NativeEncoder``."""
        return NativeEncoder(
            self._snapshot, max_tokens=max_tokens, threads=self._threads, share=share, kernels=self._kernels
        )

    def _step(
        self,
        rows: Items[Row],
        logits: NDArray[np.float32] | None,
        interrupt: c_int32 | None = None,
        *,
        resume: bool = False,
    ) -> list[list[Sampled] | ServiceError]:
        ids: list[int] = []
        starts, tables = [0], [0]
        blocks: list[int] = []
        outputs: list[int] = []
        choices: list[tuple[Any, ...]] = []
        keep: list[Any] = []
        for row in rows:
            ids += row.token_ids
            starts.append(len(ids))
            blocks += row.sequence.blocks[: -(-(row.start + len(row.token_ids)) // BLOCK_TOKENS)]
            tables.append(len(blocks))
            outputs += range(len(ids) - row.samples, len(ids))
            choices += [_choice(row, index, keep) for index in range(row.samples)]
        count = len(outputs)
        self._ids[: len(ids)] = ids
        self._outputs[:count] = outputs
        if count:
            self._choices[:count] = choices
        ats, long_texts = [row.start for row in rows], [row.sequence.long_text for row in rows]
        arrays = [np.array(values, np.int32) for values in (starts, ats, long_texts, tables, blocks)]
        step = library.Step(
            len(rows),
            len(ids),
            count,
            len(blocks),
            self._ids.ctypes.data,
            *(array.ctypes.data for array in arrays),
            self._outputs.ctypes.data,
            self._choices.ctypes.data,
            self._chosen.ctypes.data,
            None if logits is None else logits.ctypes.data,
            interrupt=None if interrupt is None else addressof(interrupt),
            resume=resume,
        )
        status = self._library.warmstart_step(self._handle, step)
        if status == library.INTERRUPTED:
            raise StepInterrupted
        library.check(self._library, status)
        return self._results(rows, count)

    def _results(self, rows: Items[Row], count: int) -> list[list[Sampled] | ServiceError]:
        chosen = self._chosen[:count]
        ids, failed = chosen["id"].tolist(), chosen["failed"].tolist()
        results: list[list[Sampled] | ServiceError] = []
        at = 0
        for row in rows:
            mine = range(at, at + row.samples)
            at += row.samples
            if any(failed[i] for i in mine):
                results.append(InternalError("the model produced logits that are not numbers"))
            elif row.sequence.params.logprobs is None:
                results.append([Sampled(ids[i]) for i in mine])
            else:
                results.append([_with_logprobs(chosen[i]) for i in mine])
        return results

    def copy_block(self, source: int, target: int) -> None:
        """Copy a KV block onto another, in all layers."""
        library.check(self._library, self._library.warmstart_copy_block(self._handle, source, target))


def _choice(row: Row, index: int, keep: list[Any]) -> tuple[Any, ...]:
    """Return the fields of ``library.CHOICE`` for one sampled token of a row.

    Args:
        row: the row.
        index: index of the sampled token within the row, from 0.
        keep: receives the arrays that the fields point to; they must live until the step is done.
    """
    sequence = row.sequence
    params = sequence.params

    def address(values: Any, kind: type[np.generic]) -> int:
        array = np.fromiter(values, kind)
        keep.append(array)
        return array.ctypes.data

    biases = sequence.bias(index)
    mask = row.mask(index)
    bias_ids = bias = seen_ids = counted_ids = counts = banned = 0
    seen = counted = 0
    if biases:
        bias_ids = address((token for token, _ in biases), np.int32)
        bias = address((value for _, value in biases), np.float32)
    if params.repetition_penalty != 1:
        distinct = set(sequence.tokens)
        seen, seen_ids = len(distinct), address(distinct, np.int32)
    if (params.presence_penalty or params.frequency_penalty) and sequence.counts:
        counted = len(sequence.counts)
        counted_ids, counts = address(sequence.counts, np.int32), address(sequence.counts.values(), np.int32)
    if row.banned:
        banned = address(row.banned, np.int32)
    return (
        sequence.random(index),
        *(bias_ids, bias, seen_ids, counted_ids, counts, banned),
        0 if mask is None else mask.ctypes.data,
        *(params.temperature, params.top_p, params.min_p),
        *(params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
        *(params.top_k, -1 if params.logprobs is None else params.logprobs),
        *(len(biases), seen, counted, len(row.banned), 0 if mask is None else mask.size),
    )


def _with_logprobs(chosen: Any) -> Sampled:
    tops = int(chosen["tops"])
    top = zip(chosen["top_ids"][:tops].tolist(), chosen["top_logprobs"][:tops].tolist(), strict=True)
    return Sampled(int(chosen["id"]), float(chosen["logprob"]), tuple(top))
