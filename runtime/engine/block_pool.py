"""KV block allocation with reference counts and automatic prefix caching.

Paged KV memory as in PagedAttention (arXiv:2309.06180). The prefix cache looks a block up by its parent chain and its
exact token ids rather than by a hash alone, so a hit is always an equal prefix.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence as Items
from itertools import count

from runtime.engine.sequence import Sequence

BLOCK_TOKENS = 16
"""Positions per KV block in every runner."""

_Chain = int | tuple[int, str]  # id of a chain of blocks; that of an empty chain may have a cache salt
_Key = tuple[_Chain, tuple[int, ...]]  # (the chain before the block, the block's token ids)
_ROOT, _LONG_ROOT = 0, 1  # the empty chain, and that of long texts, whose keys are rotated differently


class BlockPool:
    """Allocates the KV blocks of one runner to sequences, and keeps the prefix cache.

    A sequence gets blocks for the tokens that it has, and more while it grows. Full blocks enter the prefix cache while
    their sequence still runs, and stay there after it ends, until their memory is needed or newer blocks evict them
    (LRU). A sequence that references a cached block references the chain before it too, so a parent
    is never unreferenced for longer than its children, and the least recently used idle block is always a leaf.

    Args:
        blocks: number of blocks, numbered from 0.
        block_tokens: positions per block.
        cache_blocks: maximum number of cached blocks that no sequence references.
    """

    def __init__(self, blocks: int, block_tokens: int, *, cache_blocks: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.cache_blocks = cache_blocks
        self.queries = 0  # prompt tokens looked up
        self.hits = 0  # of those, tokens found in the prefix cache
        self.touched = 0  # highest block ever allocated + 1: the memory that may be resident
        self._chains = count(
            _LONG_ROOT + 1
        )  # ids are never reused, so an evicted chain cannot be mistaken for a new one
        self.reset()

    def reset(self) -> None:
        """Free all blocks and clear the prefix cache; the counters are kept."""
        self._free = list(range(self.blocks - 1, -1, -1))  # a stack, so that already resident memory is reused first
        self._ref_counts = [0] * self.blocks
        self._cached: dict[_Key, int] = {}
        self._keys: list[_Key | None] = [None] * self.blocks
        self._chain: list[_Chain] = [_ROOT] * self.blocks  # id of the chain that ends with a cached block
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and unreferenced, least recently used first

    @property
    def available(self) -> int:
        """Number of blocks that can be allocated now, free or idle in the prefix cache."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Number of blocks that sequences reference."""
        return self.blocks - self.available

    def required_blocks(self, sequence: Sequence) -> int:
        """Return the number of blocks for all positions that a sequence may ever have."""
        return -(-sequence.capacity // self.block_tokens)

    def grows(self, sequence: Sequence) -> bool:
        """Whether a sequence may need more blocks than those for its present tokens."""
        return len(sequence.tokens) <= (self.required_blocks(sequence) - 1) * self.block_tokens

    def reserve(self, sequence: Sequence, spare: int = 0) -> bool:
        """Allocate the blocks of a sequence's present tokens, reusing blocks of its leader or of the prefix cache.

        The block of the last token is never reused: that token must be computed to get the logits of the next one.

        Args:
            sequence: a sequence without blocks. If it has a leader, the leader has computed their shared prompt, at
                least up to its last token, and the sequence has no tokens beyond that prompt.
            spare: number of blocks that must stay available.

        Returns:
            Whether there were enough blocks; if not, nothing has changed.
        """
        shared = self._shared(sequence)
        fresh = self._present_blocks(sequence) - len(shared)
        if fresh + spare > self.available - sum(block in self._idle for block in shared):
            return False
        for block in shared:
            self._acquire(block)
        sequence.blocks = shared + self._allocate(fresh)
        sequence.num_cached_blocks = len(shared)
        sequence.computed = len(shared) * self.block_tokens
        if sequence.leader is not None:
            sequence.cached = sequence.leader.cached
        elif not sequence.preemptions:
            sequence.cached = sequence.computed
            self.queries += len(sequence.prompt)
            self.hits += sequence.cached
        return True

    def extend(self, sequence: Sequence, positions: int) -> int:
        """Allocate further blocks of a running sequence, as many as are available.

        Args:
            sequence: a sequence with blocks.
            positions: number of positions to have blocks for, at most ``Sequence.capacity``.

        Returns:
            Number of positions that have blocks now, which may be more or less.
        """
        missing = -(-positions // self.block_tokens) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks = sequence.blocks + self._allocate(min(missing, self.available))
        return len(sequence.blocks) * self.block_tokens

    def can_reserve_after_release(self, sequence: Sequence, others: Items[Sequence], spare: int = 0) -> bool:
        """Whether ``reserve`` would succeed after the release of the other sequences."""
        shared = set(self._shared(sequence))
        held = Counter(block for other in others for block in other.blocks)
        freed = sum(self._ref_counts[block] == count for block, count in held.items() if block not in shared)
        fresh = self._present_blocks(sequence) - len(shared)
        return fresh + spare <= self.available - sum(block in self._idle for block in shared) + freed

    def cache_full_blocks(self, sequence: Sequence) -> None:
        """Add the blocks that a sequence has filled since the last call to the prefix cache.

        If another sequence has cached an equal block in the meantime, the sequence uses that one and its own is freed.
        """
        size = self.block_tokens
        for index in range(sequence.num_cached_blocks, sequence.computed // size):
            blocks = sequence.blocks
            block = blocks[index]
            chain = self._chain[blocks[index - 1]] if index else _root(sequence)
            key = (chain, tuple(sequence.tokens[index * size : (index + 1) * size]))
            cached = self._cached.get(key)
            if cached is None:
                self._cached[key] = block
                self._keys[block] = key
                self._chain[block] = next(self._chains)
            else:
                self._acquire(cached)
                self._release_block(block, keep=True)
                sequence.blocks = [*blocks[:index], cached, *blocks[index + 1 :]]
            sequence.num_cached_blocks = index + 1

    def hand_over(self, leader: Sequence, follower: Sequence) -> bool:
        """Give a follower the blocks of the prompt that it shares with its leader, which has computed it.

        The block of the prompt's last token, which the follower computes again, leaves the prefix cache.

        Returns:
            Whether that was possible; not if another sequence references that last block.
        """
        last = (len(leader.prompt) - 1) // self.block_tokens
        block = leader.blocks[last]
        if self._ref_counts[block] > 1:
            return False
        self._uncache(block)
        follower.blocks, leader.blocks = leader.blocks[: last + 1], leader.blocks[last + 1 :]
        follower.num_cached_blocks = min(leader.num_cached_blocks, last)
        follower.computed, follower.cached = len(leader.prompt) - 1, leader.cached
        return True

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Release all blocks of a sequence.

        Args:
            sequence: the sequence; it has no blocks afterwards.
            keep: whether its cached blocks stay in the prefix cache; False if their content may be wrong.
        """
        for block in reversed(sequence.blocks):  # the end of a chain first, so that it is also evicted first
            self._release_block(block, keep=keep)
        sequence.blocks = []
        sequence.num_cached_blocks = 0
        while len(self._idle) > self.cache_blocks:
            self._free.append(self._evict())

    def _present_blocks(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self.block_tokens)

    def _shared(self, sequence: Sequence) -> list[int]:
        """Return the already computed blocks before a sequence's last token, of its leader or of the prefix cache."""
        size, tokens = self.block_tokens, sequence.tokens
        full_blocks = (len(tokens) - 1) // size
        if sequence.leader is not None:
            return sequence.leader.blocks[:full_blocks]
        blocks: list[int] = []
        chain = _root(sequence)
        for start in range(0, full_blocks * size, size):
            block = self._cached.get((chain, tuple(tokens[start : start + size])))
            if block is None:
                break
            blocks.append(block)
            chain = self._chain[block]
        return blocks

    def _acquire(self, block: int) -> None:
        if not self._ref_counts[block]:
            del self._idle[block]
        self._ref_counts[block] += 1

    def _allocate(self, number: int) -> list[int]:
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(number)]
        for block in blocks:
            self._ref_counts[block] = 1
        self.touched = max(self.touched, max(blocks, default=-1) + 1)
        return blocks

    def _release_block(self, block: int, *, keep: bool) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block]:
            return
        if keep and self._keys[block] is not None:
            self._idle[block] = None
            return
        self._uncache(block)
        self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._uncache(block)
        return block

    def _uncache(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None


def _root(sequence: Sequence) -> _Chain:
    root = _LONG_ROOT if sequence.long_text else _ROOT
    return (root, sequence.cache_salt) if sequence.cache_salt else root
