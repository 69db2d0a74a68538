"""Converts the tensors of mixtures of experts.

A layer's experts may be gigabytes, so their rows are read a few at a time, wherever the checkpoint has them: in one
tensor for each expert, or in one for all of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.loading.checkpoint_parts import Array, CheckpointParts
from runtime.loading.converted_weights import ConvertedWeights
from runtime.loading.equalize import Factors
from runtime.loading.matrix_types import Rows
from runtime.loading.mlp_tensors import interleave
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS, padded_rows

_ReadRows = Callable[[int, int], Array]
_PARTS = ("experts_gate_up", "experts_gate", "experts_up", "experts_down")


@dataclass(frozen=True, slots=True)
class _Stack:
    """Tensors with the same matrix of all experts of a layer.

    Args:
        tensors: their names in the checkpoint; empty if one is missing, which is reported before values are read.
        reads: for each a function that reads some of its rows.
        height: number of rows of each.
        columns: number of columns.
    """

    tensors: tuple[str, ...]
    reads: tuple[_ReadRows, ...]
    height: int
    columns: int

    def read(self, places: Rows) -> Array:
        """Return the rows at some places [rows, columns]."""
        values = np.zeros((len(places), self.columns), np.float32)
        # Panels of gate and up alternate; in the order of their tensors, all of them are a few long runs of rows.
        order = np.argsort(places, kind="stable")
        index = places[order] - 1
        starts = np.flatnonzero((np.diff(index) != 1) | (index[1:] % self.height == 0)) + 1
        for start, stop in zip([0, *starts], [*starts, len(index)], strict=True):
            if index[start] >= 0:
                tensor, row = divmod(int(index[start]), self.height)
                values[order[start:stop]] = self.reads[tensor](row, row + int(stop - start))
        return values

    def rows(self, places: Rows) -> _ReadRows:
        """Return a function that reads some of the rows of a matrix that has those at some places."""
        return lambda start, stop: self.read(places[start:stop])


@dataclass(frozen=True, slots=True)
class _Places:
    """Which rows of their tensors the matrices of experts have, those of each expert padded to whole panels.

    Args:
        gate: those of the gate projections.
        up: those of the up projections.
        both: those of both, alternately panels of gate and up; rows of the tensors with the gate projections come
            first, then those of the tensors with the up projections, if these are others.
        down: those of the down projections.
    """

    gate: Rows
    up: Rows
    both: Rows
    down: Rows

    @classmethod
    def of(cls, count: int, width: int, hidden: int, *, joint: bool) -> _Places:
        """Return the places for a number of experts, of a width inside, with joint gate and up projections or not."""
        height = 2 * width if joint else width
        gate, up = (_expert_rows(count, height, first, width) for first in (0, width if joint else 0))
        behind = 0 if joint else count * width
        return cls(
            gate, up, interleave([gate, np.where(up > 0, up + behind, 0)]), _expert_rows(count, hidden, 0, hidden)
        )


def _expert_rows(count: int, height: int, first: int, rows: int) -> Rows:
    """Return the places of some rows of all experts.

    Args:
        count: number of experts.
        height: number of rows that the tensors have for each expert.
        first: index of the first of them.
        rows: their number.
    """
    places = np.arange(count)[:, None] * height + np.arange(first + 1, first + rows + 1)
    return np.pad(places, ((0, 0), (0, -rows % PANEL_ROWS))).reshape(-1)


class ExpertTensors:
    """Converts the mixtures of experts of one checkpoint. Arguments as for ``MLPTensors``."""

    def __init__(
        self,
        config: DecoderConfig,
        layout: CheckpointLayout,
        parts: CheckpointParts,
        out: ConvertedWeights,
        *,
        equalize: bool,
    ) -> None:
        self._config = config
        self._layout = layout
        self._parts = parts
        self._out = out
        self._equalize = equalize
        self._places: dict[bool, _Places] = {}  # all layers have the same, and large ones

    def convert(self, i: int) -> None:
        """Convert the tensors of a layer's mixture of experts, except the MLP of its shared expert."""
        experts, hidden = self._config.experts, self._config.hidden
        if experts is None:
            raise ValueError(f"layer {i} has experts that the configuration does not describe")
        router = self._parts.weight("router", (experts.count, hidden), i)
        self._out.add(f"{i}.router", (experts.count, hidden), router)
        if experts.correction:
            self._vector("router_correction", experts.count, i)
        self._matrices(i, experts.count, experts.intermediate)
        if experts.shared_gate:
            self._vector("shared_gate", hidden, i)

    def _vector(self, part: str, width: int, i: int) -> None:
        """Convert a vector, which may be stored as a matrix of one row."""
        read = self._parts.stored.use(self._parts.name(part, i), (width,), (1, width))
        self._out.add(f"{i}.{part}", (width,), lambda: read().reshape(width))

    def _matrices(self, i: int, count: int, width: int) -> None:
        """Convert the matrices of a layer's experts.

        Args:
            i: the layer's index.
            count: number of experts.
            width: width inside each.
        """
        hidden, names = self._config.hidden, self._names(i)
        joint = "experts_gate_up" in names
        if joint:
            gate = up = both = self._stack(names["experts_gate_up"], count, 2 * width, hidden)
        else:
            gate, up = (self._stack(names[part], count, width, hidden) for part in ("experts_gate", "experts_up"))
            both = _Stack(gate.tensors + up.tensors, gate.reads + up.reads, gate.height, hidden)
        down = self._stack(names["experts_down"], count, hidden, width)
        if joint not in self._places:
            self._places[joint] = _Places.of(count, width, hidden, joint=joint)
        places = self._places[joint]
        factors: Sequence[Factors] = ()
        if self._equalize:
            factors = _factors(up.rows(places.up), down.rows(places.down), count, width, hidden)

        def add(name: str, stack: _Stack, rows: Rows, scale: Callable[[Array], Array] | None) -> None:
            read = stack.rows(rows)
            if factors and scale is not None:
                read = _scaled(read, len(rows) // count, factors, scale)
            shape = len(rows), stack.columns
            self._out.add_matrix_of(
                stack.tensors, f"{i}.{name}", shape, lambda: read(0, len(rows)), rows, read_rows=read
            )

        def up_scale(values: Array) -> Array:
            return np.pad(np.reciprocal(values), (0, -width % PANEL_ROWS))[:, None]

        if self._out.in_parts:
            add("experts_gate_up.gate", gate, places.gate, None)
            add("experts_gate_up.up", up, places.up, up_scale)
        else:
            add(
                "experts_gate_up",
                both,
                places.both,
                lambda values: interleave([np.ones_like(up_scale(values)), up_scale(values)]),
            )
        add("experts_down", down, places.down, lambda values: np.broadcast_to(values, (padded_rows(hidden), width)))

    def _names(self, i: int) -> Mapping[str, str]:
        """Return the whole names of the tensors of a layer's experts by part, of two arrangements the stored one."""
        stacked = {part: name.replace("{i}", str(i)) for part, name in self._layout.stacked.items()}
        if any(self._parts.stored.name(name) for name in stacked.values()):
            return stacked
        return {part: self._parts.name(part, i) for part in _PARTS if part in self._layout.names}

    def _stack(self, name: str, count: int, rows: int, columns: int) -> _Stack:
        """Find the same matrix of all experts.

        Args:
            name: its name, as in ``CheckpointLayout.names``.
            count: number of experts.
            rows: number of rows of each expert's matrix.
            columns: number of its columns.
        """
        stored = self._parts.stored
        apart = "{e}" in name
        names = [name.replace("{e}", str(expert)) for expert in range(count)] if apart else [name]
        for each in names:
            stored.use(each, (rows, columns) if apart else (count, rows, columns))
        found = [(tensor, read) for each in names if (tensor := stored.name(each)) and (read := stored.rows(each))]
        tensors, reads = zip(*found, strict=True) if len(found) == len(names) else ((), ())
        return _Stack(tensors, reads, rows if apart else count * rows, columns)


def _factors(up: _ReadRows, down: _ReadRows, count: int, width: int, hidden: int) -> Sequence[Factors]:
    """Return the factors of each expert, see ``Factors``.

    Args:
        up: reads rows of the up projections of all experts, each padded to whole panels.
        down: reads rows of their down projections in the same way.
        count: number of experts.
        width: width inside each.
        hidden: width of their outputs.
    """

    def matrix(read: _ReadRows, expert: int, rows: int) -> Callable[[], Array]:
        start = expert * padded_rows(rows)
        return lambda: read(start, start + rows)

    return [Factors(matrix(up, expert, width), matrix(down, expert, hidden)) for expert in range(count)]


def _scaled(read: _ReadRows, rows: int, factors: Sequence[Factors], scale: Callable[[Array], Array]) -> _ReadRows:
    """Return a function that reads rows of a matrix of all experts and rescales them.

    Args:
        read: reads them.
        rows: number of rows of each expert.
        factors: the factors of each expert.
        scale: returns by what the rows of an expert are multiplied [rows, 1 or columns], given its factors.
    """

    def scaled(start: int, stop: int) -> Array:
        values = read(start, stop)
        for expert in range(start // rows, -(-stop // rows)):
            first, last = max(start, expert * rows), min(stop, (expert + 1) * rows)
            values[first - start : last - start] *= scale(factors[expert].values)[
                first - expert * rows : last - expert * rows
            ]
        return values

    return scaled
