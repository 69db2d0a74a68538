"""The header of a GGUF file: every type of value, places of tensors, and damage."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from runtime.model.gguf_header import TensorPlace, read_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("text", "na\u00efve")
    writer.add_array("texts", ["a", "", "\u4e16"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_tensor("half", np.array([1, 2, 3], np.float16))
    writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors_are_read(file: Path) -> None:
    """Scalars, texts and arrays by key; tensors of plain floats by name."""
    header = read_header(file)
    assert header.architecture == "llama"
    found = {key: header.metadata[key] for key in ("u8", "i64", "f32", "yes", "text", "texts")}
    assert found == {
        "u8": 200,
        "i64": -(1 << 40),
        "f32": 0.5,
        "yes": True,
        "text": "na\u00efve",
        "texts": ["a", "", "\u4e16"],
    }
    assert header.metadata["numbers"].tolist() == [1.5, 2.5]
    half, matrix = header.vector("half"), header.vector("matrix")
    assert half is not None
    assert matrix is not None
    assert (half.tolist(), matrix.tolist()) == ([1, 2, 3], [0, 1, 2, 3, 4, 5])
    assert header.tensors["matrix"].shape == (3, 2)
    assert header.vector("none") is None


def test_a_file_that_is_cut_short_or_something_else_is_an_error(file: Path, tmp_path: Path) -> None:
    """Wherever the header is cut; and tensors that are no longer there."""
    whole = file.read_bytes()
    end = min(place.offset for place in read_header(file).tensors.values())
    cut = tmp_path / "cut.gguf"
    for size in range(1, end - 32, 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="GGUF"):
            read_header(cut)
    cut.write_bytes(whole[: end + 1])
    with pytest.raises(ValueError, match="beyond the end"):
        read_header(cut).vector("matrix")
    cut.write_bytes(b"GGUF\x01\x00\x00\x00" + whole[8:])
    with pytest.raises(ValueError, match="version 1"):
        read_header(cut)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"general.architecture", b"general.architectury", "without general.architecture"),
        (b"yes", b"f32", "'f32' occurs a second time"),
        (b"\x06\0\0\0\0\0\0\0matrix", b"\x04\0\0\0\0\0\0\0half\x02\0", "occurs a second time|is damaged"),
        (b"half\x01\0\0\0", b"half\x09\0\0\0", "9 dimensions are more than"),
        (b"numbers\x09\0\0\0\x06\0\0\0", b"numbers\x09\0\0\0\x63\0\0\0", "unsupported type 99"),
        (b"texts\x09\0\0\0\x08\0\0\0\x03", b"texts\x09\0\0\0\x08\0\0\0\xff", "the file ends within it|texts are more"),
    ],
)
def test_damage_is_named(file: Path, old: bytes, new: bytes, message: str) -> None:
    """Keys and tensors that occur twice, too many dimensions, unknown types, counts beyond the end of the file."""
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=message):
        assert read_header(file).architecture


def test_quantized_tensors_are_no_vectors(file: Path) -> None:
    """The error names the tensor."""
    header = read_header(file)
    place = header.tensors["half"]
    header.tensors["half"] = TensorPlace(place.shape, 8, place.file, place.offset)
    with pytest.raises(ValueError, match="half is quantized"):
        header.vector("half")
