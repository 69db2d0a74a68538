"""Encoder on the compiled kernels: the final states of the tokens of whole texts, in one native call per step."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import EncoderInput
from runtime.engine.block_pool import BLOCK_TOKENS
from runtime.engine.core_share import CoreShare
from runtime.engine.native import library
from runtime.engine.native.model import NativeModel
from runtime.model.snapshot import Snapshot

_CACHED_TOKENS = 256  # of a step, for each thread: their activations stay in the processor's second cache
_LEAST_TOKENS = 32  # of a step: with fewer, reading the weights takes most of the time


class NativeEncoder(NativeModel):
    """Computes the states of packed texts. Implements ``runtime.engine.runners.EncoderRunner``.

    Keys and values live for one layer: all layers write them to the same blocks, which stay in the processor's cache.

    Args:
        snapshot: the model; its arrays are read in place and kept.
        max_tokens: maximum tokens per step.
        threads: number of compute threads, including the caller's.
        share: gives this encoder its turns beside models that generate.
        kernels: the library to use; by default the best for this processor.

    Raises:
        RuntimeError, MemoryError: as for ``NativeModel``.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        max_tokens: int,
        threads: int,
        share: CoreShare | None = None,
        kernels: library.Kernels | None = None,
    ) -> None:
        super().__init__(
            snapshot,
            kv_dtype="float32",  # they stay in the processor's cache, and need no conversion
            blocks=max_tokens,  # each of a step's texts may be one token
            max_tokens=max_tokens,
            threads=threads,
            kernels=kernels,
            transient=True,
        )
        config = snapshot.facts.decoder
        self._width, self._types = config.hidden, config.token_types
        self._short_context = config.short_context
        self._depth = len(config.layers)
        self._share = share or CoreShare()
        self._cached = threads * _CACHED_TOKENS
        self._seconds = 0.0  # of a token in a layer, moving average

    def step_tokens(self, most: int) -> int:
        """Return the maximum tokens of the next step: fewer while a model generates, which waits for a layer of it.

        Args:
            most: the maximum while none does; fewer if the activations of so many do not stay in the cache.
        """
        most = min(most, self._cached)
        seconds = self._share.slice_seconds
        if seconds is None or not self._seconds:
            return most
        return max(_LEAST_TOKENS, min(most, int(seconds / self._seconds)))

    def states(self, texts: Sequence[EncoderInput], outputs: Sequence[range]) -> list[NDArray[np.float32]]:
        """Return the final states of some of each text's tokens, [tokens, hidden] for each text.

        Args:
            texts: the texts, no more than ``max_tokens`` tokens together.
            outputs: the tokens of each text whose states are needed, by their positions.
        """
        lengths = np.array([len(text.ids) for text in texts])
        starts, tables = (
            np.concatenate([[0], np.cumsum(n)]).astype(np.int32) for n in (lengths, -(-lengths // BLOCK_TOKENS))
        )
        ids = np.concatenate([np.array(text.ids, np.int32) for text in texts])
        wanted = [
            np.arange(span.start, span.stop, dtype=np.int32) + start
            for span, start in zip(outputs, starts, strict=False)
        ]
        tokens = np.concatenate(wanted)
        types = self._token_types(texts) if self._types else None
        at, blocks = np.zeros(len(texts), np.int32), np.arange(tables[-1], dtype=np.int32)
        long_texts = (lengths > self._short_context).astype(np.int32) if self._short_context else at
        found = np.empty((len(tokens), self._width), np.float32)
        step = library.Step(
            len(texts),
            len(ids),
            len(tokens),
            len(blocks),
            *(array.ctypes.data for array in (ids, starts, at, long_texts, tables, blocks, tokens)),
            types=None if types is None else types.ctypes.data,
            states=found.ctypes.data,
        )
        for layer in range(self._depth):  # the cores are given back between two layers
            step.first_layer, step.last_layer = layer, layer + 1
            with self._share.encoding():
                started = time.perf_counter()
                library.check(self._library, self._library.warmstart_step(self._handle, step))
                seconds = (time.perf_counter() - started) / len(ids)
            self._seconds += 0.1 * (seconds - self._seconds)
        return np.split(found, np.cumsum([len(part) for part in wanted])[:-1])

    def _token_types(self, texts: Sequence[EncoderInput]) -> NDArray[np.int32]:
        return np.concatenate([np.array(text.types or (0,) * len(text.ids), np.int32) for text in texts])
