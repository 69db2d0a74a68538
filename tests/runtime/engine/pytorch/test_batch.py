"""From rows to arrays."""

from __future__ import annotations

import numpy as np

from runtime.engine.pytorch.batch import BatchPacker, Shape
from runtime.engine.sequence import Row
from tests.support.decoders import placed


def packer(**changes: object) -> BatchPacker:
    defaults: dict[str, object] = {
        "block_tokens": 4,
        "spare": 99,
        "widths": (1, 4),
        "tile": 0,
        "piece": 2,
        "buckets": False,
    }
    return BatchPacker(**(defaults | changes))  # type: ignore[arg-type]


def parts(shape: Shape, flat: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(shape.sizes)[:-1])]


DECODE = Row(placed([0] * 9, [7, 8, 9]), 8, [50])
CHUNK = Row(placed(range(20), [1, 2, 3, 4, 5]), 2, [12, 13, 14, 15, 16], samples=0)
DRAFTS = Row(placed([0] * 3, [6, 0]), 3, [60, 61, 62], drafts=2, samples=3)
DRAFTS.sequence.long_text = True


def test_rows_are_cut_into_tiles() -> None:
    """Each token has a slot in its sequence's blocks; a tile is padded with its first token, tables to whole pieces."""
    shape, flat = packer().pack([DECODE, CHUNK, DRAFTS])
    assert shape == Shape(9, 4, ((1, 1, 4), (3, 4, 2)))
    ids, positions, long, slots, outputs, samples, *groups = parts(shape, flat)
    assert ids == [50, 12, 13, 14, 15, 16, 60, 61, 62]
    assert positions == [8, 2, 3, 4, 5, 6, 3, 4, 5]
    assert long == [0] * 6 + [1] * 3
    assert slots == [9 * 4, 1 * 4 + 2, 1 * 4 + 3, 2 * 4, 2 * 4 + 1, 2 * 4 + 2, 6 * 4 + 3, 0, 1]
    assert samples == [0, 6, 7, 8]
    assert groups == [
        [0],
        [7, 8, 9, 99],
        [1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8, 6],
        [1, 2, 1, 2, 6, 0],
    ]
    assert outputs == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    assert not shape.decoding


def test_steps_are_filled_up_to_the_tile() -> None:
    """What fills up is the first token again, written to the spare block; a step without samples has a tile of them
    all the same.
    """
    shape, flat = packer(tile=8).pack([CHUNK])
    assert (shape.tokens, shape.samples) == (8, 8)
    assert parts(shape, flat)[3][5:] == [99 * 4] * 3
    shape, flat = packer(tile=8).pack([DRAFTS, DECODE])
    ids, positions, long, _, outputs, *_ = parts(shape, flat)
    assert (ids[4:], positions[4:], long[4:]) == ([60] * 4, [3] * 4, [1] * 4)
    assert outputs == [1, 2, 3, 0] + [1] * 4


def test_decode_steps_have_few_shapes() -> None:
    """With buckets, rows and lengths are powers of two; 5 to 8 rows give one shape."""
    rows = [Row(placed([0] * 9, [i, i, i]), 8, [i]) for i in range(8)]
    shapes = {packer(buckets=True).pack(rows[:count])[0] for count in range(5, 9)}
    assert shapes == {Shape(8, 8, ((8, 1, 4),))}
    assert shapes.pop().decoding
    _, flat = packer(buckets=True).pack(rows[:5])
    assert parts(Shape(8, 8, ((8, 1, 4),)), flat)[7][-4:] == [99] * 4
    assert packer(buckets=True).pack([*rows, CHUNK])[0].groups == ((8, 1, 4), (2, 4, 2))
