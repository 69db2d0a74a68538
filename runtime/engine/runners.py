"""The protocols of model runners, which execute an engine's steps on a device."""

from __future__ import annotations

from collections.abc import Sequence as Items
from ctypes import c_int32
from typing import TYPE_CHECKING, Protocol

from runtime.encoder_types import EncoderInput
from runtime.engine.core_share import CoreShare
from runtime.engine.sequence import Row, Sampled
from runtime.errors import ServiceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EncoderRunner(Protocol):
    """Computes the states of whole texts. Only the engine thread calls it."""

    max_tokens: int

    def step_tokens(self, most: int) -> int:
        """Return the maximum tokens of the next step, no more than ``most``."""
        ...

    def states(self, texts: Items[EncoderInput], outputs: Items[range]) -> list[NDArray[np.float32]]:
        """Return [tokens, hidden] the final states of the tokens of each text that ``outputs`` names.

        Args:
            texts: the texts, no more than ``max_tokens`` tokens together. The result of a text must not depend on the
                others in any bit.
            outputs: positions within each text.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class Runner(Protocol):
    """A model runner: executes steps on a device. It is not thread-safe.

    A position of a sequence is stored at ``blocks[position // block_tokens]``, offset ``position % block_tokens``.
    """

    @property
    def block_tokens(self) -> int:
        """Positions per KV block."""
        ...

    @property
    def blocks(self) -> int:
        """Number of KV blocks, numbered from 0."""
        ...

    @property
    def block_bytes(self) -> int:
        """Size of one KV block in bytes, over all layers."""
        ...

    @property
    def max_tokens(self) -> int:
        """Maximum tokens per step, over all rows."""
        ...

    def step(
        self, rows: Items[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        """Write the rows' keys and values to the KV cache, and sample tokens.

        The j-th choice of a row (from 0) uses the random number of position ``generated + j`` and assumes that the
        first j drafts are right; the caller keeps only the choices for which that is true.

        Args:
            rows: the rows.
            interrupt: another thread sets it to 1 to interrupt the step between two layers. Runners that cannot do that
                complete the step.
            resume: whether these are the rows of the step that was interrupted last, unchanged. It goes on where it
                was; other steps may have run meanwhile.

        Returns:
            For each row its sampled tokens, or the error if this row alone failed.

        Raises:
            StepInterrupted: the step was interrupted. It can go on, or its rows can be run again.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy a KV block onto another, in all layers."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...


class BenchRunner(Runner, Protocol):
    """A model runner with what ``runtime.bench`` and the loader use besides."""

    @property
    def level(self) -> str | None:
        """The instruction set level of its compiled kernels; None for a runner on PyTorch."""
        ...

    @property
    def kv_dtype(self) -> str:
        """The number type of keys and values."""
        ...

    def logits(self, rows: Items[Row]) -> NDArray[np.float32]:
        """Run a step and return its logits.

        Returns:
            [samples of all rows, vocabulary] the model's unmodified float32 logits.
        """
        ...

    def read(self, data: NDArray[np.float32]) -> None:
        """Read an array in the host's memory once with all threads, to measure memory bandwidth."""
        ...

    def encoder(self, max_tokens: int, share: CoreShare | None) -> EncoderRunner:
        """Return what computes the states of texts with the same weights, which stay in memory once.

        Args:
            max_tokens: maximum tokens per step.
            share: gives the encoder its turns beside models that generate.
        """
        ...
