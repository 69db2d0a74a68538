"""Collects the tensors of a snapshot while a checkpoint is converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.loading.checkpoint_parts import Array, CheckpointParts, Read, Shape
from runtime.loading.matrix_types import MatrixTypes, Rows
from runtime.loading.snapshot_writer import Weight
from runtime.model.checkpoint_layout import CheckpointLayout


class ConvertedWeights:
    """The converted tensors of one checkpoint, in the order in which the decoder reads them.

    Args:
        layout: how the checkpoint names and arranges its tensors.
        parts: its tensors.
        types: as for ``convert``.

    Attributes:
        weights: the tensors so far.
    """

    def __init__(self, layout: CheckpointLayout, parts: CheckpointParts, types: MatrixTypes | None) -> None:
        self._layout = layout
        self._parts = parts
        self._types = types
        self.weights: list[Weight] = []

    @property
    def in_parts(self) -> bool:
        """Whether matrices have types of their own, and are stored in parts where ``runtime.model.tensors`` says so."""
        return self._types is not None

    def add(self, name: str, shape: Shape, read: Read, *, matrix: bool = False) -> None:
        """Add a tensor. Arguments as for ``Weight``."""
        self.weights.append(Weight(name, shape, matrix, read))

    def add_linear(self, part: str, i: int | None, shape: Shape) -> None:
        """Add a matrix that keeps its arrangement, and its bias if it has one."""
        name = part if i is None else f"{i}.{part}"
        self.add_same(name, part, i, shape)
        if self._parts.has_bias(part):
            self.add(f"{name}.bias", shape[:1], self._parts.bias(part, shape[0], i))

    def add_same(self, name: str, part: str, i: int | None, shape: Shape) -> None:
        """Add a matrix that keeps its arrangement, which is read in pieces if it is stored so, too."""
        read = self._parts.weight(part, shape, i)
        read_rows = None if part in self._layout.transposed else self._parts.stored.rows(self._parts.name(part, i))
        self.add_matrix(name, shape, read, part, i, read_rows=read_rows)

    def add_matrix(
        self,
        name: str,
        shape: Shape,
        read: Read,
        part: str,
        i: int | None,
        rows: Rows | None = None,
        *,
        whole_rows: bool = True,
        read_rows: Callable[[int, int], Array] | None = None,
    ) -> None:
        """Add a matrix in the snapshot's type, or in one of its own.

        Args:
            name: as for ``Weight``, and so are ``shape``, ``read`` and ``read_rows``.
            part: the part that contains the matrix.
            i: the layer's index.
            rows: as for ``MatrixTypes.weight``, and so is ``whole_rows``.
        """
        tensor = self._parts.stored.name(self._parts.name(part, i))
        tensors = () if tensor is None else (tensor,)
        whole_rows = whole_rows and part not in self._layout.transposed
        self.add_matrix_of(tensors, name, shape, read, rows, whole_rows=whole_rows, read_rows=read_rows)

    def add_matrix_of(
        self,
        tensors: Sequence[str],
        name: str,
        shape: Shape,
        read: Read,
        rows: Rows | None,
        *,
        whole_rows: bool = True,
        read_rows: Callable[[int, int], Array] | None = None,
    ) -> None:
        """Add a matrix that some tensors contain. Arguments as for ``MatrixTypes.weight``."""
        if self._types is None:
            self.weights.append(Weight(name, shape, True, read, read_rows))
        else:
            weight = self._types.weight(name, shape, read, tensors, rows, whole_rows=whole_rows, read_rows=read_rows)
            self.weights.append(weight)
