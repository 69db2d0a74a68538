"""Tensors of GGUF files, and what happens to files that are damaged in any way."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import open_gguf
from runtime.model.config import UnsupportedDecoder

MATRIX = np.random.default_rng(5).normal(size=(48, 64)).astype(np.float32)
QUANTIZED = quantize(MATRIX, gguf.GGMLQuantizationType.Q8_0)


def write(file: Path, *, split: int = 0) -> Path:
    """A small file with every part of the format: scalars, texts, arrays, and tensors of three types."""
    writer = gguf.GGUFWriter(file, "llama", split_max_tensors=split)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b", "\u4e16"])
    writer.add_token_types([1, 1, 1])
    writer.add_tensor("token_embd.weight", QUANTIZED, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", MATRIX)
    writer.add_tensor("output_norm.weight", np.arange(64, dtype=np.float16))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


def test_tensors_and_their_rows(tmp_path: Path) -> None:
    """All of a tensor, some rows, and a vector; each as float32."""
    _, source = open_gguf(write(tmp_path / "model.gguf"))
    expected = dequantize(QUANTIZED, gguf.GGMLQuantizationType.Q8_0)
    assert set(source.names()) == {"token_embd.weight", "blk.0.ffn_up.weight", "output_norm.weight"}
    assert source.shape("token_embd.weight") == (48, 64)
    assert np.array_equal(source.read("token_embd.weight"), expected)
    assert np.array_equal(source.read_rows("token_embd.weight", 16, 48), expected[16:])
    assert np.array_equal(source.read("blk.0.ffn_up.weight"), MATRIX)
    assert np.array_equal(source.read("output_norm.weight"), np.arange(64))


def test_parts_of_a_split_file_are_one_model(tmp_path: Path) -> None:
    """From the first part as from another; without one of them, the error names it."""
    write(tmp_path / "model.gguf", split=1)
    second = tmp_path / "model-00002-of-00003.gguf"
    _, source = open_gguf(second)
    assert np.array_equal(source.read("blk.0.ffn_up.weight"), MATRIX)
    second.unlink()
    with pytest.raises(ValueError, match=r"split into 3 files, of which model-00002-of-00003\.gguf is missing"):
        open_gguf(tmp_path / "model-00001-of-00003.gguf")


def changed(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def place(content: bytes, text: bytes) -> int:
    """The position behind the last occurrence of a name."""
    return content.rindex(text) + len(text)


DAMAGE = {
    "the number of tensors": (lambda c: changed(c, 8, b"\xff" * 8), "tensors are more than a file of"),
    "the number of keys": (lambda c: changed(c, 16, b"\xff" * 4), "keys are more than a file of"),
    "a key's length": (lambda c: changed(c, 24, b"\xff" * 8), "in key 1 of"),
    "a value's type": (lambda c: changed(c, place(c, b"llama.block_count"), b"\x63"), "'llama.block_count'.* type 99"),
    "the number of layers": (
        lambda c: changed(c, place(c, b"llama.block_count") + 4, b"\xff" * 4),
        "llama.block_count is 4294967295, which is above the limit of 10000",
    ),
    "an array's length": (
        lambda c: changed(c, place(c, b"tokenizer.ggml.token_type") + 8, b"\xff" * 7),
        "'tokenizer.ggml.token_type'",
    ),
    "a text's length": (
        lambda c: changed(c, place(c, b"tokenizer.ggml.tokens") + 16, b"\xff" * 7),
        "'tokenizer.ggml.tokens'",
    ),
    "a tensor's dimensions": (lambda c: changed(c, place(c, b"ffn_up.weight"), b"\x09"), "9 dimensions"),
    "a tensor's size": (lambda c: changed(c, place(c, b"ffn_up.weight") + 4, b"\xff" * 6), "ffn_up.weight"),
    "a tensor's width": (lambda c: changed(c, place(c, b"token_embd.weight") + 4, b"\x3f"), "a multiple of Q8_0's 32"),
    "a tensor's type": (
        lambda c: changed(c, place(c, b"ffn_up.weight") + 20, b"\x63"),
        "ffn_up.weight has the type 99",
    ),
    "a tensor's position": (lambda c: changed(c, place(c, b"ffn_up.weight") + 24, b"\x20\0"), "overlaps"),
    "a crooked position": (lambda c: changed(c, place(c, b"ffn_up.weight") + 24, b"\x01"), "not at a multiple of 32"),
    "a position far away": (lambda c: changed(c, place(c, b"ffn_up.weight") + 24, b"\xe0" * 8), "truncated"),
    "two tensors of one name": (
        lambda c: c.replace(b"token_embd.weight", b"output_nor.weight").replace(
            b"\x12\0\0\0\0\0\0\0output_norm.weight", b"\x11\0\0\0\0\0\0\0output_nor.weightX"
        ),
        "model.gguf",
    ),
    "the end": (lambda c: c[:-100], "truncated"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_is_named_by_file_and_field(fault: str, content: bytes, tmp_path: Path) -> None:
    """One value at a time."""
    change, message = DAMAGE[fault]
    file = tmp_path / "model.gguf"
    file.write_bytes(change(content))
    with pytest.raises(ValueError, match=message) as error:
        open_gguf(file)
    assert "model.gguf" in str(error.value)


DAMAGES = st.lists(
    st.tuples(st.floats(0, 1), st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8]))),
    max_size=4,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=DAMAGES, size=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_no_damage_causes_another_error(
    damages: list[tuple[float, bytes]], size: float, content: bytes, tmp_path: Path
) -> None:
    """Overwritten bytes anywhere and cut ends; nor does any make the reader allocate much."""
    header = content.rindex(b"output_norm.weight") + 60
    for share, new in damages:
        content = changed(content, int(share * header), new)
    file = tmp_path / "model.gguf"
    file.write_bytes(content[: int(size * len(content))])
    tracemalloc.start()
    try:
        message = outcome(file)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "model.gguf" in message
    assert peak < 10_000_000


def outcome(file: Path) -> str:
    """Read everything in a file, and return its name or the message of the error that it causes."""
    try:
        header, source = open_gguf(file)
    except ValueError as error:
        return str(error)
    for name in source.names():
        assert source.read(name).shape == source.shape(name)
    with contextlib.suppress(UnsupportedDecoder):
        read_gguf(header)
    return file.name
