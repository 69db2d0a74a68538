"""Where the tensors of a model are read from: one interface for checkpoints' files and for models in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class TensorSource(Protocol):
    """Reads tensors by name, each when it is asked for."""

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32, possibly a read-only view."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return a matrix's rows from ``start`` to before ``stop`` as float32, possibly a read-only view.

        A stack of matrices [E, N, K] is read as the matrix [E N, K] of their rows one after the other.
        """


class StateDictSource:
    """The tensors of a PyTorch model in memory. Of tensors that share their storage only the first has a name.

    Args:
        state: the model's ``state_dict()``.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        places: set[tuple[int, tuple[int, ...]]] = set()
        self._state: dict[str, Any] = {}
        for name, tensor in state.items():
            place = tensor.data_ptr(), tuple(tensor.shape)
            if place not in places or tensor.numel() == 0:
                self._state[name] = tensor
            places.add(place)

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._state.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._state[name].shape)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a whole tensor as float32."""
        values: NDArray[np.float32] = self._state[name].detach().float().cpu().numpy()
        return values

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return some of the rows of a matrix or of a stack as float32."""
        tensor = self._state[name]
        rows = tensor.reshape(-1, tensor.shape[-1])[start:stop]
        values: NDArray[np.float32] = rows.detach().float().cpu().numpy()
        return values
