"""Packs the rows of a step into one integer array and a padded shape, in plain Python and numpy."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from runtime.engine.sequence import Row


@dataclass(frozen=True, slots=True)
class Shape:
    """The padded sizes of a step. A CUDA graph captured for one shape is used for every step of that shape.

    Args:
        tokens: number of packed tokens M.
        samples: number of sampled tokens S.
        groups: (tiles B, tokens per tile W, blocks per table N) for each tile width, in ascending order of width.
    """

    tokens: int
    samples: int
    groups: tuple[tuple[int, int, int], ...]

    @property
    def sizes(self) -> list[int]:
        """Lengths of the parts: ids, positions, long, slots, outputs, samples, then each group's tokens and tables."""
        groups = [size for rows, width, blocks in self.groups for size in (rows * width, rows * blocks)]
        return [self.tokens] * 5 + [self.samples, *groups]

    @property
    def decoding(self) -> bool:
        """Whether the step is a pure decode step, with one token per sequence."""
        return len(self.groups) == 1 and self.groups[0][1] == 1


@dataclass(frozen=True, slots=True)
class BatchPacker:
    """Packs the rows of a step and pads them to a ``Shape``.

    Args:
        block_tokens: positions per KV block.
        spare: the block that padding tokens are written to.
        widths: tile widths in ascending order; a row's tokens are split into tiles of the narrowest width that takes
            all of them, or else of the widest.
        tile: numbers of tokens and samples are padded to a multiple of this; 0 for no padding.
        piece: block tables are padded to a multiple of this many blocks.
        buckets: whether to pad decode steps to powers of two, so that few shapes occur.
    """

    block_tokens: int
    spare: int
    widths: tuple[int, ...]
    tile: int
    piece: int
    buckets: bool

    def pack(self, rows: Items[Row]) -> tuple[Shape, NDArray[np.int64]]:
        """Return the step's shape, and its parts concatenated in the order of ``Shape.sizes``."""
        ids: list[int] = []
        positions: list[int] = []
        long: list[int] = []  # whether each token is of a long text
        slots: list[int] = []
        samples: list[int] = []
        tiles: dict[int, list[tuple[int, int, list[int]]]] = {}  # width -> (first token, tokens, blocks up to the last)
        size = self.block_tokens
        for row in rows:
            first, count, blocks = len(ids), len(row.token_ids), row.sequence.blocks
            ids += row.token_ids
            fed = range(row.start, row.start + count)
            positions += fed
            long += [row.sequence.long_text] * count
            slots += [blocks[position // size] * size + position % size for position in fed]
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
        done = 0  # number of outputs of the previous groups
        for width in sorted(tiles):
            group = tiles[width]
            count = _power(len(group)) if decoding else len(group)
            longest = -(-max(len(blocks) for _, _, blocks in group) // self.piece)
            length = (_power(longest) if decoding else longest) * self.piece
            queries, tables = [0] * (count * width), [self.spare] * (count * length)
            for i, (first, tokens, blocks) in enumerate(group):
                # Padding repeats the first token, so that a tile's queries are within the window that it reads.
                queries[i * width : (i + 1) * width] = [*range(first, first + tokens), *[first] * (width - tokens)]
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
        padding = shape.tokens - len(ids)
        slots += [self.spare * size] * padding
        for part in (ids, positions, long, outputs):
            # Padding repeats the first token, so that it is not routed to experts which no token needs.
            part += part[:1] * padding
        flat = np.zeros(sum(shape.sizes), np.int64)
        starts = accumulate(shape.sizes, initial=0)
        for start, part in zip(starts, [ids, positions, long, slots, outputs, samples, *parts], strict=False):
            flat[start : start + len(part)] = part
        return shape, flat

    def _filled(self, count: int) -> int:
        tile = self.tile or 1
        return max(1, -(-count // tile)) * tile


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
