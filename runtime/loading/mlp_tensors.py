"""Converts the tensors of MLPs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from runtime.loading.checkpoint_parts import Array, CheckpointParts, Read, zeros
from runtime.loading.converted_weights import ConvertedWeights
from runtime.loading.equalize import Factors
from runtime.loading.matrix_types import row_numbers
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS, padded_rows
from runtime.model.tensors import gate_up_rows


class MLPTensors:
    """Converts the MLPs of one checkpoint.

    Args:
        config: the decoder's configuration.
        layout: how the checkpoint names and arranges its tensors.
        parts: its tensors.
        out: receives the converted tensors.
        equalize: as for ``convert``.
    """

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

    def convert(self, i: int, inner: int, prefix: str = "") -> None:
        """Convert the tensors of an MLP.

        Args:
            i: the layer's index.
            inner: width inside the MLP.
            prefix: what the names of its parts begin with.
        """
        hidden, parts = self._config.hidden, self._parts
        if not self._config.gated:
            self._out.add_linear("up", i, (inner, hidden))
            self._out.add_linear("down", i, (hidden, inner))
            return
        gate_part, up_part, joint_part, down_part = (prefix + part for part in ("gate", "up", "gate_up", "down"))
        down = parts.weight(down_part, (hidden, inner), i)
        if joint_part in self._layout.names:
            joint = parts.weight(joint_part, (2 * inner, hidden), i)
            gate, up = _half(joint, 0), _half(joint, 1)
            has_bias = parts.has_bias(joint_part)
            joint_bias = parts.bias(joint_part, 2 * inner, i) if has_bias else zeros(2 * inner)
            gate_bias, up_bias = _half(joint_bias, 0), _half(joint_bias, 1)
            gate_part = up_part = joint_part
        else:
            gate, up = (parts.weight(part, (inner, hidden), i) for part in (gate_part, up_part))
            has_bias = parts.has_bias(gate_part) or parts.has_bias(up_part)
            gate_bias, up_bias = (parts.bias_or_zeros(part, inner, i) for part in (gate_part, up_part))
        if self._equalize:
            factors = Factors(up, down)
            up, up_bias, down = factors.up(up), factors.up(up_bias), factors.down
        rows = gate_up_rows(inner)
        if not self._out.in_parts:
            self._out.add(f"{i}.gate_up", (rows, hidden), lambda: interleave([gate(), up()]), matrix=True)
        else:
            self._add_half(f"{i}.gate_up.gate", gate, gate_part, i, row_numbers(inner))
            first = inner if up_part == joint_part else 0
            self._add_half(f"{i}.gate_up.up", up, up_part, i, row_numbers(inner) + first)
        if has_bias:
            self._out.add(f"{i}.gate_up.bias", (rows,), lambda: interleave([gate_bias(), up_bias()]))
        self._out.add_matrix(f"{i}.down", (hidden, inner), down, down_part, i)
        if parts.has_bias(down_part):
            self._out.add(f"{i}.down.bias", (hidden,), parts.bias(down_part, hidden, i))

    def _add_half(self, name: str, read: Read, part: str, i: int, rows: Array) -> None:
        """Add the gate or the up projection in a type of its own, padded to whole panels."""
        padding = -len(rows) % PANEL_ROWS
        padded = functools.partial(lambda read: np.pad(read(), ((0, padding), (0, 0))), read)
        shape = len(rows) + padding, self._config.hidden
        self._out.add_matrix(name, shape, padded, part, i, np.pad(rows, (0, padding)))


def interleave(parts: Sequence[Array]) -> Array:
    """Alternate panels of two tensors, so that one pass computes the gate and up projections side by side.

    Args:
        parts: the two tensors [I, ...].

    Returns:
        The result [2 I, ...], with I padded to a multiple of ``PANEL_ROWS``.
    """
    rows = padded_rows(len(parts[0]))
    filled = [np.pad(part, [(0, rows - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in parts]
    panels = [part.reshape(-1, PANEL_ROWS, *part.shape[1:]) for part in filled]  # [I / 16, 16, ...]
    both: Array = np.stack(panels, axis=1).reshape(2 * rows, *parts[0].shape[1:])
    return both


def _half(read: Read, half: int) -> Read:
    """Return a function that reads the first or the second half of a tensor's rows."""
    return lambda: np.split(read(), 2)[half]
