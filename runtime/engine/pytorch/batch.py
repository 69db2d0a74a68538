"""From the rows of a step to the arrays that describe it: plain Python and one array of integers."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from runtime.engine.sequence import Row


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a step, filled up; what is captured for one shape serves every step of it.

    Args:
        tokens: M.
        samples: S.
        groups: (tiles B, tokens of a tile W, blocks of a table N) of each width, narrow ones first.
    """

    tokens: int
    samples: int
    groups: tuple[tuple[int, int, int], ...]

    @property
    def sizes(self) -> list[int]:
        """Of the parts of a packed step: ids, positions, slots, outputs, samples; each group's tokens and tables."""
        groups = [size for rows, width, blocks in self.groups for size in (rows * width, rows * blocks)]
        return [self.tokens] * 4 + [self.samples, *groups]

    @property
    def decoding(self) -> bool:
        """Whether every sequence has one token."""
        return len(self.groups) == 1 and self.groups[0][1] == 1


@dataclass(frozen=True, slots=True)
class BatchPacker:
    """Packs steps.

    Args:
        block_tokens: positions of a block.
        spare: the block where what fills up is written.
        widths: of tiles, ascending; a row's tokens are cut into tiles of the narrowest that takes them all, or of the
            widest.
        tile: products take a multiple of so many rows.
        piece: tables have a multiple of so many blocks.
        buckets: whether to fill steps in which every sequence has one token up to powers of two, so that few shapes
            occur.
    """

    block_tokens: int
    spare: int
    widths: tuple[int, ...]
    tile: int
    piece: int
    buckets: bool

    def pack(self, rows: Items[Row]) -> tuple[Shape, NDArray[np.int64]]:
        """The step's shape, and its parts in the order of ``Shape.sizes``, one behind another."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        samples: list[int] = []
        tiles: dict[int, list[tuple[int, int, list[int]]]] = {}  # width -> (first token, tokens, blocks in reach)
        size = self.block_tokens
        for row in rows:
            first, count, blocks = len(ids), len(row.token_ids), row.sequence.blocks
            ids += row.token_ids
            places = range(row.start, row.start + count)
            positions += places
            slots += [blocks[place // size] * size + place % size for place in places]
            samples += range(first + count - row.samples, first + count)
            width = next((width for width in self.widths if width >= count), self.widths[-1])
            group = tiles.setdefault(width, [])
            for offset in range(0, count, width):
                tokens = min(width, count - offset)
                group.append((first + offset, tokens, blocks[: (row.start + offset + tokens - 1) // size + 1]))
        outputs = [0] * len(ids)
        parts: list[list[int]] = []
        groups: list[tuple[int, int, int]] = []
        decoding = self.buckets and list(tiles) == [1]
        done = 0  # outputs of groups before
        for width in sorted(tiles):
            group = tiles[width]
            count = _power(len(group)) if decoding else len(group)
            longest = -(-max(len(blocks) for _, _, blocks in group) // self.piece)
            length = (_power(longest) if decoding else longest) * self.piece
            queries, tables = [0] * (count * width), [self.spare] * (count * length)
            for i, (first, tokens, blocks) in enumerate(group):
                queries[i * width : i * width + tokens] = range(first, first + tokens)
                tables[i * length : i * length + len(blocks)] = blocks
                outputs[first : first + tokens] = range(done + i * width, done + i * width + tokens)
            parts += [queries, tables]
            groups.append((count, width, length))
            done += count * width
        shape = Shape(
            self._filled(groups[0][0] if decoding else len(ids)),
            self._filled(groups[0][0] if decoding else len(samples)),
            tuple(groups),
        )
        slots += [self.spare * size] * (shape.tokens - len(ids))
        flat = np.zeros(sum(shape.sizes), np.int64)
        starts = accumulate(shape.sizes, initial=0)
        for start, part in zip(starts, [ids, positions, slots, outputs, samples, *parts], strict=False):
            flat[start : start + len(part)] = part
        return shape, flat

    def _filled(self, count: int) -> int:
        tile = self.tile or 1
        return max(1, -(-count // tile)) * tile


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
