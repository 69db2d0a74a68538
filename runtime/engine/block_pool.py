"""Where keys and values live: blocks of positions, handed out whole to sequences and shared between equal prefixes.

Paged KV memory as in PagedAttention (arXiv:2309.06180), with a prefix cache over it. A cached block is found by its
parent in the chain and its exact tokens, so what is found is equal for certain; a hash alone decides nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence as Items
from itertools import count

from runtime.engine.sequence import Sequence

_Key = tuple[int, tuple[int, ...]]  # (the chain before the block, the block's tokens)
_ROOT = 0  # the empty chain


class BlockPool:
    """The KV blocks of one runner and who holds them.

    A sequence gets all its blocks at once, so that it never has to wait for memory in the middle. Blocks full of
    computed tokens enter the prefix cache while their sequence still runs, and stay there when it ends, until the
    memory is needed or newer ones push them out. A sequence that holds a cached block holds the chain before it too,
    so a parent is never left idle for longer than its children and the oldest idle block is always a leaf.

    Args:
        blocks: how many there are, numbered from 0.
        block_tokens: positions in one.
        cache_blocks: cached blocks to keep at most beyond those that sequences hold.
    """

    def __init__(self, blocks: int, block_tokens: int, *, cache_blocks: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.cache_blocks = cache_blocks
        self.queries = 0  # prompt tokens looked up
        self.hits = 0  # of those, tokens found
        self.touched = 0  # blocks, from the first, that somebody has ever held: the memory that was taken up
        self._chains = count(_ROOT + 1)  # names are never used twice: a dropped chain cannot come back as another
        self.reset()

    def reset(self) -> None:
        """Forget every holder and everything cached; the counters go on."""
        self._free = list(range(self.blocks - 1, -1, -1))  # a stack: memory touched before is touched again first
        self._holders = [0] * self.blocks
        self._cached: dict[_Key, int] = {}
        self._keys: list[_Key | None] = [None] * self.blocks
        self._chain = [_ROOT] * self.blocks  # name of the chain that ends with a cached block
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and held by nobody, longest idle first

    @property
    def available(self) -> int:
        """Blocks that could be handed out now."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - self.available

    def needed(self, sequence: Sequence) -> int:
        """Blocks for all positions of a sequence."""
        return -(-sequence.capacity // self.block_tokens)

    def reserve(self, sequence: Sequence) -> bool:
        """Give a sequence all its blocks, those before its last token from its leader or the prefix cache.

        The last token is never taken from there: what follows it must be computed.

        Args:
            sequence: it holds none; its leader, if it has one, has computed their prompt, which is all it has itself.

        Returns:
            Whether there were enough; if not, nothing has changed.
        """
        shared = self._shared(sequence)
        fresh = self.needed(sequence) - len(shared)
        if fresh > self.available - sum(block in self._idle for block in shared):
            return False
        for block in shared:
            self._hold(block)
        sequence.blocks = shared + self._take(fresh)
        sequence.shareable = len(shared)
        sequence.computed = len(shared) * self.block_tokens
        if sequence.leader is not None:
            sequence.cached = sequence.leader.cached
        elif not sequence.preempted:
            sequence.cached = sequence.computed
            self.queries += len(sequence.prompt)
            self.hits += sequence.cached
        return True

    def within_reach(self, sequence: Sequence, others: Items[Sequence]) -> bool:
        """Whether ``reserve`` would succeed if these others were released first."""
        shared = set(self._shared(sequence))
        held = Counter(block for other in others for block in other.blocks)
        freed = sum(self._holders[block] == count for block, count in held.items() if block not in shared)
        fresh = self.needed(sequence) - len(shared)
        return fresh <= self.available - sum(block in self._idle for block in shared) + freed

    def publish(self, sequence: Sequence) -> None:
        """Make the blocks that a sequence has filled since the last call findable.

        Where another sequence has published an equal block meanwhile, that one is held instead and the own is freed.
        """
        size = self.block_tokens
        for index in range(sequence.shareable, sequence.computed // size):
            blocks = sequence.blocks
            own = blocks[index]
            chain = self._chain[blocks[index - 1]] if index else _ROOT
            key = (chain, tuple(sequence.tokens[index * size : (index + 1) * size]))
            known = self._cached.get(key)
            if known is None:
                self._cached[key] = own
                self._keys[own] = key
                self._chain[own] = next(self._chains)
            else:
                self._hold(known)
                self._drop(own, keep=True)
                sequence.blocks = [*blocks[:index], known, *blocks[index + 1 :]]
            sequence.shareable = index + 1

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take all blocks back.

        Args:
            sequence: it holds none afterwards.
            keep: whether the published ones stay cached; not when what was computed is in doubt.
        """
        for block in reversed(sequence.blocks):  # the end of a chain first, so that it also goes first
            self._drop(block, keep=keep)
        sequence.blocks = []
        sequence.shareable = 0
        while len(self._idle) > self.cache_blocks:
            self._free.append(self._evict())

    def _shared(self, sequence: Sequence) -> list[int]:
        """The blocks before a sequence's last token that are computed already."""
        size, tokens = self.block_tokens, sequence.tokens
        whole = (len(tokens) - 1) // size  # blocks
        if sequence.leader is not None:
            return sequence.leader.blocks[:whole]
        found: list[int] = []
        chain = _ROOT
        for start in range(0, whole * size, size):
            block = self._cached.get((chain, tuple(tokens[start : start + size])))
            if block is None:
                break
            found.append(block)
            chain = self._chain[block]
        return found

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def _take(self, number: int) -> list[int]:
        taken = [self._free.pop() if self._free else self._evict() for _ in range(number)]
        for block in taken:
            self._holders[block] = 1
        self.touched = max(self.touched, max(taken, default=-1) + 1)
        return taken

    def _drop(self, block: int, *, keep: bool) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if keep and self._keys[block] is not None:
            self._idle[block] = None
            return
        self._forget(block)
        self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None
