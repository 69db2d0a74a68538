"""What the compiled kernels refuse, instead of reading or writing where nothing of theirs lies."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.engine import engine as engine_module
from runtime.engine.native import library
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.errors import InternalError
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.model.load_timer import Phases
from runtime.model.snapshot import Snapshot
from runtime.types import Job, SamplingParams
from tests.support.engines import Load, needs_kernels, snapshot_of
from tests.support.models import ROOT

pytestmark = needs_kernels


def opened(snapshot: Snapshot, **options: Any) -> NativeRunner:
    chosen = {"kv_bytes": 1 << 20, "max_tokens": 64, "threads": 1} | options
    return NativeRunner(snapshot, **chosen)


def row(ids: list[int], blocks: list[int], start: int = 0, *, samples: int = 1, **params: Any) -> Row:
    """A row that asks for one token."""
    sequence = Sequence(tuple(ids), SamplingParams(**{"max_new_tokens": 9, "temperature": 0} | params), seed=1)
    sequence.blocks = blocks
    return Row(sequence, start, ids, samples=samples)


def banned(*ids: int) -> Row:
    return replace(row([1], [0]), banned=ids)


def counted(**counts: int) -> Row:
    made = row([1], [0], presence_penalty=1.0)
    made.sequence.counts = Counter({int(name[1:]): count for name, count in counts.items()})
    return made


def seen(token: int) -> Row:
    made = row([1], [0], repetition_penalty=1.3)
    made.sequence.tokens.append(token)
    return made


REFUSED: dict[str, tuple[Callable[[NativeRunner], Row], str]] = {
    "a token id": (lambda runner: row([1, 600], [0]), "token id"),
    "a negative token id": (lambda runner: row([-1], [0]), "token id"),
    "a block": (lambda runner: row([1] * 20, [0, runner.blocks]), "block"),
    "a negative block": (lambda runner: row([1], [-1]), "block"),
    "too few blocks": (lambda runner: row([1] * 20, [0]), "position"),
    "no block": (lambda runner: row([1], []), "rows"),
    "a negative position": (lambda runner: row([1, 1], [0], -1), "position"),
    "a position behind the context": (lambda runner: row([1], list(range(9)), 128), "position"),
    "no token": (lambda runner: row([], [0], samples=0), "rows"),
    "more choices than tokens": (lambda runner: row([1, 2], [0], samples=3), "output"),
    "a biased id": (lambda runner: row([1], [0], logit_bias=((600, 1.0),)), "choice"),
    "a negative biased id": (lambda runner: row([1], [0], logit_bias=((-1, 1.0),)), "choice"),
    "a forced id": (lambda runner: row([1], [0], forced=(600,)), "choice"),
    "a seen id": (lambda runner: seen(600), "choice"),
    "a counted id": (lambda runner: counted(t600=1), "choice"),
    "a banned id": (lambda runner: banned(2, 600), "choice"),
    "log-probabilities": (lambda runner: row([1], [0], logprobs=33), "choice"),
    "top_k": (lambda runner: row([1], [0], temperature=1, top_k=-1), "choice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_is_out_of_range_is_refused(name: str, tiny_gpt2: Path) -> None:
    """The exception says what is wrong, nothing was written, and the next step is as ever."""
    make, message = REFUSED[name]
    runner = opened(snapshot_of(tiny_gpt2, "float32"))
    good = row([5, 6, 7], [1])
    expected = runner.logits([good])
    with pytest.raises(RuntimeError, match=f"kernels refuse.*{message}"):
        runner.step([make(runner), row([8, 9, 10], [1])])
    assert np.array_equal(runner.logits([row([7], [1], 2)]), expected)
    assert np.array_equal(runner.logits([good]), expected)
    runner.close()


def test_what_makes_logits_no_numbers_fails_its_row(tiny_gpt2: Path) -> None:
    """A bias that is not a number, greedily: the search for the largest logit ends, and the neighbour has its token."""
    runner = opened(snapshot_of(tiny_gpt2, "float32"))
    bad, good = runner.step([row([1], [0], logit_bias=((5, float("nan")),)), row([1], [1])])
    assert isinstance(bad, InternalError)
    assert [good] == runner.step([row([1], [0])])
    runner.close()


def test_blocks_that_there_are_not_are_not_copied(tiny_gpt2: Path) -> None:
    """Neither from nor to."""
    runner = opened(snapshot_of(tiny_gpt2, "float32"))
    for source, target in ((0, runner.blocks), (-1, 0), (runner.blocks, 0), (0, -1)):
        with pytest.raises(RuntimeError, match="block"):
            runner.copy_block(source, target)
    runner.close()


def test_a_closed_runner_refuses(tiny_gpt2: Path) -> None:
    """Whatever is asked of it; closing it again is harmless."""
    runner = opened(snapshot_of(tiny_gpt2, "float32"))
    runner.close()
    runner.close()
    for call in (
        lambda: runner.step([row([1], [0])]),
        lambda: runner.copy_block(0, 0),
        lambda: runner.read(np.ones(1 << 16, np.float32)),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "name", ["embed", "1.qkv", "0.up", "1.down", "final_norm.weight", "1.mlp_norm.bias", "positions"]
)
def test_a_tensor_of_another_size_is_refused(name: str, kind: str, tiny_gpt2: Path) -> None:
    """A snapshot whose tensor is shorter than the configuration demands is never opened."""
    snapshot = snapshot_of(tiny_gpt2, kind)
    place = snapshot._places[name]
    cut = replace(place, size=place.size - 64, shape=place.shape if place.matrix else (place.size // 4 - 16,))
    changed = Snapshot(snapshot.facts, snapshot.tokenizer, snapshot._bytes.base, snapshot._places | {name: cut}, "")  # type: ignore[operator, arg-type]
    with pytest.raises(RuntimeError, match="tensor"):
        opened(changed)


def test_scales_and_positions_that_are_missing_are_refused(tiny_gpt2: Path) -> None:
    """Int8 weights without scales, a context longer than the table of positions, a head that no query can share."""
    snapshot = snapshot_of(tiny_gpt2, "int8")
    place = snapshot._places["0.down"]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"0.down": replace(place, scales=None)}, {}),
        ({}, {"context_length": 129}),
        ({}, {"kv_heads": 3}),
        ({}, {"layers": ()}),
    ]
    for places, changes in cases:
        facts = replace(snapshot.facts, decoder=replace(snapshot.facts.decoder, **changes))
        changed = Snapshot(facts, snapshot.tokenizer, snapshot._bytes.base, snapshot._places | places, "")  # type: ignore[operator, arg-type]
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            opened(changed)


def test_a_library_with_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field's place is compared, not the structures' sizes only."""
    kernels = library.usable()[0].functions
    fields = library.CHOSEN.fields
    assert fields is not None
    places = {name: field[1] for name, field in fields.items()}
    places["id"], places["failed"] = places["failed"], places["id"]
    formats = [field[0] for field in fields.values()]
    swapped = np.dtype({"names": list(places), "formats": formats, "offsets": list(places.values())})
    assert swapped.itemsize == library.CHOSEN.itemsize
    monkeypatch.setattr(library, "CHOSEN", swapped)
    with pytest.raises(RuntimeError, match="structures"):
        library._opened(ctypes.CDLL(kernels._name))


async def test_a_request_that_the_kernels_refuse_fails_alone(
    tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a wrong id to pass admission, its request would end with an error, and those beside it as ever."""
    engine = load(tiny_llama, kv_cache_bytes=1 << 22)

    async def answer(prompt: tuple[int, ...]) -> list[int]:
        job = Job(prompt, SamplingParams(max_new_tokens=8, temperature=0, repetition_penalty=1.3))
        async with aclosing(engine.stream([job])) as tokens:
            return [token.id async for token in tokens]

    expected = await answer((5, 6, 7))
    monkeypatch.setattr(engine_module, "check_token_ids", lambda *arguments: None)
    found = await asyncio.gather(answer((5, 6, 7)), answer((5, 600)), answer((5, 6, 7)), return_exceptions=True)
    assert isinstance(found[1], InternalError)
    assert found[0] == found[2] == expected
    assert await answer((5, 6, 7)) == expected
    assert engine.alive


_SCARCE = """
import resource, sys
from pathlib import Path
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.model.snapshot_folder import open_snapshot
from runtime.types import SamplingParams

snapshot = open_snapshot(Path(sys.argv[1]))
options = {"kv_bytes": 4 << 20, "max_tokens": 4096}
runner = NativeRunner(snapshot, threads=1, **options)
long = Sequence((1,) * 4096, SamplingParams(max_new_tokens=1, temperature=0), seed=0)
long.blocks = list(range(256))
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (6 << 20), resource.RLIM_INFINITY))
for attempt in (
    lambda: runner.step([Row(long, 0, long.tokens, samples=4096)]),
    lambda: NativeRunner(snapshot, threads=8, **options),
):
    try:
        attempt()
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__, error, flush=True)
"""


def test_no_memory_and_no_threads_are_exceptions(tiny_llama: Path, tmp_path: Path) -> None:
    """The process does not end with them."""
    open_serving(parse_model_name(str(tiny_llama)), "float32", tmp_path, lambda stage, share: None, Phases())
    (folder,) = (tmp_path / "serving").iterdir()
    command = [sys.executable, "-c", _SCARCE, str(folder)]
    one_arena = os.environ | {"MALLOC_ARENA_MAX": "1"}  # the C library reserves address space for others
    done = subprocess.run(command, cwd=ROOT, env=one_arena, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "MemoryError no memory for the kernels",
        "RuntimeError the kernels refuse this: no more threads",
    ], done.stderr
