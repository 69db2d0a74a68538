"""The names of a split GGUF's parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.model.gguf_split import model_name, parts


@pytest.mark.parametrize("named", [1, 2, 3])
def test_any_part_names_all(named: int) -> None:
    """In their order, in the folder of the one that was named."""
    found = parts(Path(f"a/My-Model.Q4_0-0000{named}-of-00003.gguf"))
    assert found == [Path(f"a/My-Model.Q4_0-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
    assert {model_name(part) for part in found} == {"My-Model.Q4_0"}


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-00001-of-00002", "m-1-of-2.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf"]
)
def test_other_names_are_whole_files(name: str) -> None:
    """A number that no part can have makes no part."""
    assert parts(Path(name)) == [Path(name)]
    assert model_name(Path(name)) == Path(name).stem


def test_a_suffix_in_capitals_stays() -> None:
    """The parts' names differ in their number only."""
    assert parts(Path("m-00002-of-00002.GGUF"))[0] == Path("m-00001-of-00002.GGUF")
