"""runtime.engine.block_pool: who holds which block, and what the prefix cache finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.block_pool import BlockPool
from runtime.engine.sequence import Sequence
from runtime.types import SamplingParams
from tests.support.fakes import check_pool


def sequence(*prompt: int, new: int = 1) -> Sequence:
    return Sequence(prompt, SamplingParams(max_new_tokens=new), seed=0)


def run(pool: BlockPool, *prompt: int, new: int = 1) -> Sequence:
    """A sequence that has computed its prompt."""
    running = sequence(*prompt, new=new)
    assert pool.reserve(running)
    compute(pool, running)
    return running


def compute(pool: BlockPool, running: Sequence) -> None:
    assert pool.extend(running, len(running.tokens)) >= len(running.tokens)
    running.computed = len(running.tokens)
    pool.cache_full_blocks(running)


def test_required_blocks() -> None:
    """A sequence may need blocks for its prompt and all it may generate, but the last token, which nothing reads."""
    pool = BlockPool(8, 4, cache_blocks=0)
    sequences = [sequence(*range(5), new=new) for new in (1, 4, 5)]
    assert [pool.required_blocks(one) for one in sequences] == [2, 2, 3]
    assert [pool.grows(one) for one in sequences] == [False, False, True]


def test_blocks_come_as_a_sequence_grows() -> None:
    """A sequence gets blocks for its prompt, and more when it has filled them, as many as there are."""
    pool = BlockPool(4, 4, cache_blocks=0)
    first = run(pool, *range(5), new=50)
    assert (first.blocks, pool.used, pool.available) == ([0, 1], 2, 2)
    before = first.blocks
    assert pool.extend(first, 8) == 8
    assert first.blocks is before
    assert pool.extend(first, 9) == 12
    assert (first.blocks, before) == ([0, 1, 2], [0, 1]), "the list is replaced, not changed"
    assert pool.extend(first, 30) == 16
    assert pool.extend(first, 30) == 16
    check_pool(pool, [first])


def test_spare_blocks() -> None:
    """A sequence is refused if it would leave fewer blocks than are to stay available."""
    pool = BlockPool(4, 4, cache_blocks=0)
    run(pool, 1)
    assert not pool.reserve(sequence(*range(5), new=9), spare=2)
    assert pool.reserve(sequence(*range(5), new=9), spare=1)


def test_too_few_blocks() -> None:
    """A sequence that does not fit now gets nothing, and the pool stays as it was."""
    pool = BlockPool(3, 4, cache_blocks=3)
    first = run(pool, *range(8))
    second = sequence(*range(16))
    assert not pool.reserve(second)
    assert (second.blocks, second.computed, pool.queries) == ([], 0, 8)
    check_pool(pool, [first])


def test_touched_memory_is_touched_again() -> None:
    """Blocks are handed out from the lowest, and freed ones before those never used."""
    pool = BlockPool(8, 4, cache_blocks=0)
    first, second = run(pool, 1, 2, 3, 4, 5), run(pool, 6)
    assert (first.blocks, second.blocks) == ([0, 1], [2])
    pool.release(first)
    assert run(pool, *range(10, 19)).blocks == [0, 1, 3]


def test_equal_beginnings_are_shared() -> None:
    """What a running sequence has computed is shared with a new one, whole blocks only."""
    pool = BlockPool(8, 4, cache_blocks=0)
    first, second = run(pool, *range(10)), sequence(*range(9), 77)
    assert pool.reserve(second)
    assert second.blocks == [*first.blocks[:2], 3]
    assert second.computed == second.cached == 8
    assert (pool.queries, pool.hits) == (20, 8)
    check_pool(pool, [first, second])


def test_only_equal_salts_share() -> None:
    """A beginning is shared only by sequences with the same cache salt; none is one, too."""
    pool = BlockPool(16, 4, cache_blocks=0)
    run(pool, *range(10))
    for salt, shared in (("a", 0), ("b", 0), ("a", 8), ("", 8)):
        salted = Sequence(tuple(range(10)), SamplingParams(max_new_tokens=1), seed=0, cache_salt=salt)
        assert pool.reserve(salted)
        assert salted.computed == shared
        compute(pool, salted)


def test_the_last_prompt_token_is_computed() -> None:
    """A prompt that is in the cache as a whole still computes its last block."""
    pool = BlockPool(8, 4, cache_blocks=8)
    pool.release(run(pool, *range(8)))
    again = sequence(*range(8))
    assert pool.reserve(again)
    assert again.computed == 4


def test_equal_blocks_behind_different_beginnings() -> None:
    """Equal tokens at equal positions are not shared unless all tokens before them are equal, too."""
    pool = BlockPool(8, 2, cache_blocks=8)
    run(pool, 1, 1, 5, 5, 9)
    run(pool, 2, 2)
    other = sequence(2, 2, 5, 5, 9)
    assert pool.reserve(other)
    assert other.computed == 2


def test_generated_tokens_are_cached() -> None:
    """The next turn of a chat finds the answer before it as well as its prompt."""
    pool = BlockPool(8, 4, cache_blocks=8)
    first = run(pool, 1, 2, 3, new=6)
    first.tokens += [4, 5, 6, 7, 8]
    compute(pool, first)
    pool.release(first)
    again = sequence(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert pool.reserve(again)
    assert again.cached == 8


def test_cache_is_bounded_and_loses_the_oldest_end_first() -> None:
    """Beyond ``cache_blocks`` the longest unused goes, and of a chain its end."""
    pool = BlockPool(16, 2, cache_blocks=3)
    for first in (10, 20):
        pool.release(run(pool, first, 1, 2, 3, 4))
    found = []
    for first in (10, 20):
        again = sequence(first, 1, 2, 3, 4)
        assert pool.reserve(again)
        found.append(again.cached)
    assert found == [2, 4]


def test_cached_blocks_are_free_for_use() -> None:
    """Cached blocks that nobody holds are handed out when no others are left; held ones are not."""
    pool = BlockPool(4, 2, cache_blocks=4)
    pool.release(run(pool, 1, 2, 3, 4, 5, 6))
    assert pool.available == 4
    second = sequence(1, 2, 3, 4, 9, 8, 7)  # shares two blocks and needs two more
    assert pool.reserve(second)
    assert (second.cached, pool.available) == (4, 0)
    assert not pool.reserve(sequence(7))
    check_pool(pool, [second])


def test_found_blocks_are_not_counted_twice() -> None:
    """Idle blocks that a sequence is about to share cannot also serve as its fresh ones."""
    pool = BlockPool(3, 2, cache_blocks=3)
    pool.release(run(pool, 1, 2, 3, 4))
    held = run(pool, 8)
    assert not pool.reserve(sequence(1, 2, 3, 4, 5, new=2))
    check_pool(pool, [held])


def test_equal_blocks_computed_at_once_become_one() -> None:
    """Where two computed the same at the same time, the second holds the first's block and frees its own."""
    pool = BlockPool(8, 2, cache_blocks=8)
    first, second = sequence(1, 2, 3), sequence(1, 2, 4)
    assert pool.reserve(first)
    assert pool.reserve(second)
    seen = second.blocks
    compute(pool, first)
    compute(pool, second)
    assert second.blocks[0] == first.blocks[0]
    assert seen != second.blocks, "the list is replaced, so that its identity tells of a change"
    check_pool(pool, [first, second])


def test_doubtful_blocks_are_not_kept() -> None:
    """Without ``keep`` nothing that only this sequence holds is found again, nor what stands on it."""
    pool = BlockPool(8, 2, cache_blocks=8)
    pool.release(run(pool, 1, 2, 3, 4, 5))
    bad = sequence(1, 2, 9)
    assert pool.reserve(bad)
    assert bad.cached == 2
    pool.release(bad, keep=False)
    check_pool(pool, [])
    run(pool, 1, 2)
    again = sequence(1, 2, 3, 4, 5)
    assert pool.reserve(again)
    assert again.cached == 2, "the old child of a block that came back is not its child"


def test_followers_share_the_prompt() -> None:
    """A follower gets its leader's blocks before the last prompt token, and its own
    from there on. The cache was asked for their prompt once.
    """
    pool = BlockPool(8, 2, cache_blocks=1)
    pool.release(run(pool, 1, 2, 9))
    leader = run(pool, 1, 2, 3, 4, 5, new=4)
    follower, late = (Sequence(leader.prompt, leader.params, 0, number, leader) for number in (1, 2))
    assert pool.reserve(follower)
    assert follower.blocks == [*leader.blocks[:2], 3]
    assert (follower.computed, follower.cached) == (4, 2)
    assert (pool.queries, pool.hits) == (3 + 5, 2)
    check_pool(pool, [leader, follower])
    assert pool.reserve(late)
    for one in (leader, follower, late):
        pool.release(one)
    check_pool(pool, [])


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_a_follower_takes_over_the_blocks_of_the_prompt(length: int) -> None:
    """It gets its leader's blocks up to the prompt's last token, which it computes again in a block of its own."""
    pool = BlockPool(8, 2, cache_blocks=8)
    leader = run(pool, *range(length), new=5)
    leader.tokens += [70, 71]
    compute(pool, leader)
    held = leader.blocks
    follower = Sequence(leader.prompt, leader.params, 0, 1, leader)
    assert pool.hand_over(leader, follower)
    last = (length - 1) // 2
    assert (follower.blocks, follower.computed, follower.num_cached_blocks) == (held[: last + 1], length - 1, last)
    pool.release(leader)
    check_pool(pool, [follower])
    compute(pool, follower)
    pool.release(follower)
    check_pool(pool, [])


def test_a_block_in_use_is_not_taken_over() -> None:
    """A follower cannot compute the prompt's last token again in a block that another sequence reads."""
    pool = BlockPool(8, 2, cache_blocks=8)
    leader, other = run(pool, 1, 2, 3, 4, new=5), run(pool, 1, 2, 3, 4, 5)
    assert other.blocks[:2] == leader.blocks
    follower = Sequence(leader.prompt, leader.params, 0, 1, leader)
    assert not pool.hand_over(leader, follower)
    assert (follower.blocks, follower.computed) == ([], 0)
    check_pool(pool, [leader, other])


def test_reset() -> None:
    """After a reset nothing is held and nothing is found; the counters go on."""
    pool = BlockPool(8, 2, cache_blocks=8)
    run(pool, 1, 2, 3)
    pool.reset()
    check_pool(pool, [])
    again = sequence(1, 2, 3)
    assert pool.reserve(again)
    assert (again.cached, pool.queries) == (0, 6)


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)


@settings(max_examples=200)
@given(st.integers(1, 3), st.integers(0, 14), st.data())
def test_books_agree(block_tokens: int, cache_blocks: int, data: st.DataObject) -> None:
    """Whatever is reserved, computed and released in any order, no block is lost, none is shared by different texts,
    and what the cache finds was computed for exactly these tokens.
    """
    pool = BlockPool(14, block_tokens, cache_blocks=cache_blocks)
    live: list[Sequence] = []
    text: dict[int, tuple[int, ...]] = {}  # block -> the text up to its end for which it was computed
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["reserve", "compute", "release"])):
            case "reserve":
                new = sequence(*data.draw(prompts), new=data.draw(st.integers(1, 6)))
                if pool.reserve(new):
                    live.append(new)
                    for index in range(new.cached // block_tokens):
                        assert text[new.blocks[index]] == new.prompt[: (index + 1) * block_tokens]
                else:
                    assert -(-len(new.tokens) // block_tokens) > pool.available
            case "compute" if live:
                one = data.draw(st.sampled_from(live))
                for _ in range(data.draw(st.integers(1, 6))):
                    if one.computed == len(one.tokens) < one.capacity:
                        if pool.extend(one, len(one.tokens) + 1) <= len(one.tokens):
                            assert not pool.available
                            break
                        one.tokens.append(data.draw(st.integers(0, 1)))
                    if one.computed < len(one.tokens):
                        one.computed += 1
                        if one.computed % block_tokens == 0:
                            text[one.blocks[one.computed // block_tokens - 1]] = tuple(one.tokens[: one.computed])
                pool.cache_full_blocks(one)
            case "release" if live:
                one = live.pop(data.draw(st.integers(0, len(live) - 1)))
                pool.release(one, keep=data.draw(st.booleans()))
        check_pool(pool, live)
    for one in live:
        pool.release(one)
    check_pool(pool, [])


@given(st.data())
def test_what_others_would_leave(data: st.DataObject) -> None:
    """Whether a sequence fits in place of others is told before they go, whatever they share and what is cached."""
    draw = data.draw
    blocks, size = draw(st.integers(4, 24), "blocks"), draw(st.integers(1, 4), "block_tokens")
    pool = BlockPool(blocks, size, cache_blocks=draw(st.integers(0, blocks), "cache_blocks"))
    holding: list[Sequence] = []
    for _ in range(draw(st.integers(1, 8), "arrivals")):
        one = sequence(*draw(_texts), new=draw(st.integers(1, 9)))
        if pool.reserve(one):
            compute(pool, one)
            holding.append(one)
        if holding and draw(st.booleans()):
            pool.release(holding.pop(draw(st.integers(0, len(holding) - 1))))
    wanted = sequence(*draw(_texts), new=draw(st.integers(1, 30)))
    others = draw(st.lists(st.sampled_from(holding), unique_by=id)) if holding else []
    spare = draw(st.integers(0, 5), "spare")
    told = pool.can_reserve_after_release(wanted, others, spare)
    check_pool(pool, holding)
    for other in others:
        pool.release(other)
    assert pool.reserve(wanted, spare) == told


_texts = st.one_of(
    st.integers(1, 12).map(lambda length: (1, 2, 1, 2, 3, 1, 2, 1, 2, 3, 1, 2)[:length]),  # many begin alike
    st.lists(st.integers(1, 2), min_size=1, max_size=12),
)


def test_resuming() -> None:
    """A sequence that was put back finds all that it has computed, generated tokens too, but the block of its last
    one; what it finds of its own does not count as found.
    """
    pool = BlockPool(8, 4, cache_blocks=8)
    one = run(pool, *range(6), new=20)
    one.tokens += [60, 61, 62, 63, 64, 65]
    compute(pool, one)
    pool.release(one)
    one.computed, one.preemptions = 0, 1
    assert pool.reserve(one)
    assert (one.computed, one.cached, pool.hits, pool.queries) == (8, 0, 0, 6)
    check_pool(pool, [one])
