"""Ids, texts and prompts equal those of transformers' tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from runtime.errors import InvalidRequest
from runtime.model.chat_encoder import PLAIN_TEMPLATE, ChatEncoder
from runtime.model.tokenizer import Tokenizer
from runtime.types import Message
from tests.support.models import CHATML, ROOT, train_tokenizer

TEXTS = [
    "",
    " ",
    "You may not use this file.",
    "  leading and trailing  ",
    "\n\n\ttabs\r\n",
    "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f680\u200d",
    "\u2581 is a sign of its own",
    "<|im_start|>user<|im_end|> </s> <s><0x41>",
    "1234567890 3.14",
]


def sentencepiece_like() -> Any:
    """As Llama 2's: a space sign in front, characters nobody knows as bytes, a first token added to every text."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator((ROOT / "LICENSE").read_text().splitlines(), trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes were among them only so that training kept them
    backend = Backend.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{{ bos_token }}" + CHATML
    return fast


@pytest.fixture(scope="module", params=["embedded", "gpt2", "llama", "sentencepiece"])
def pair(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path, embedded_snapshot: Any) -> Any:
    """transformers' tokenizer, and ours after a way through JSON."""
    if request.param == "embedded":  # its tokens: test_gguf_tokenizer.py
        own = embedded_snapshot.tokenizer
        backend = Backend.from_str(own.to_json())
        oracle = PreTrainedTokenizerFast(tokenizer_object=backend, **own.special_tokens)
        oracle.chat_template = own.chat_template
        return oracle, own
    oracle = {
        "gpt2": lambda: AutoTokenizer.from_pretrained(tiny_gpt2),
        "llama": lambda: AutoTokenizer.from_pretrained(tiny_llama),
        "sentencepiece": sentencepiece_like,
    }[request.param]()
    own = Tokenizer.from_json(oracle.backend_tokenizer.to_str(), oracle.chat_template, dict(oracle.special_tokens_map))
    return oracle, own


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_transformers(pair: Any, text: str) -> None:
    """Both ways, with and without what surrounds a text."""
    oracle, own = pair
    for added in (True, False):
        ids = own.encode(text, add_special_tokens=added)
        assert ids == oracle.encode(text, add_special_tokens=added)
        for skipped in (True, False):
            expected = oracle.decode(ids, skip_special_tokens=skipped, clean_up_tokenization_spaces=False)
            assert own.decode(ids, skip_special_tokens=skipped) == expected


def test_long_texts_have_the_same_ids(pair: Any) -> None:
    """They are encoded another way, beside other threads, and their tokens' places are known, too."""
    oracle, own = pair
    text = " ".join(TEXTS) * 100
    for added in (True, False):
        assert own.encode(text, add_special_tokens=added) == oracle.encode(text, add_special_tokens=added)
    short, long = own.encodings(["You may", "You may" + " not" * 2000], add_special_tokens=False)
    assert short.token_to_chars(0) == long.token_to_chars(0)


def test_what_surrounds_it_is_known(pair: Any) -> None:
    """Added tokens and the end token."""
    oracle, own = pair
    assert own.eos_token_id == oracle.eos_token_id
    assert {i: t.content for i, t in own.added_tokens.items()} == {
        i: t.content for i, t in oracle.added_tokens_decoder.items()
    }


def test_chats_are_those_of_transformers(pair: Any) -> None:
    """Harmless chats become exactly the ids that transformers' own templating gives."""
    oracle, own = pair
    chat = [Message("user", "What is a licence?\n\n 12 < 13 | x"), Message("assistant", "So."), Message("user", " Hm")]
    turns = [{"role": m.role, "content": m.content} for m in chat]
    template = oracle.chat_template or PLAIN_TEMPLATE
    prompt = oracle.apply_chat_template(turns, chat_template=template, add_generation_prompt=True, tokenize=False)
    expected = oracle.encode(prompt, add_special_tokens=not oracle.chat_template)
    assert list(ChatEncoder(own).encode(chat)) == expected


@pytest.mark.parametrize("text", TEXTS[2:])
def test_the_bytes_of_tokens_make_the_text(pair: Any, text: str) -> None:
    """One after the other, also where a character is spread over several tokens."""
    _, own = pair
    ids = own.encode(text, add_special_tokens=False)
    joined = b"".join(own.token_bytes(i) for i in ids).decode()
    assert joined in (own.decode(ids), " " + own.decode(ids))  # some decoders drop the first space


def test_an_unknown_id_has_no_bytes(pair: Any) -> None:
    """Models may have more rows than the tokenizer has tokens."""
    assert pair[1].token_bytes(10_000_000) == b""


def test_other_kinds_of_tokens_have_the_bytes_of_their_text() -> None:
    """A word of a decoder that neither spells bytes nor marks spaces."""
    backend = Backend(models.WordPiece({"[UNK]": 0, "walk": 1, "##ing": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[END]", special=True)])
    own = Tokenizer.from_json(backend.to_str(), None, {})
    assert [own.token_bytes(i) for i in range(4)] == [b"[UNK]", b"walk", b"##ing", b"[END]"]


@pytest.mark.parametrize(
    ("special", "start"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, [1]),
        ({"eos_token": "</s>"}, [2]),
        ({"bos_token": "<none>", "eos_token": "</s>"}, [2]),
    ],
)
def test_an_empty_prompt(special: dict[str, str], start: list[int]) -> None:
    """It is the token that begins a text, or else the one that ends one; a text with tokens is what it always is."""
    backend = Backend(models.WordLevel({"walk": 0, "<s>": 1, "</s>": 2}))
    own = Tokenizer.from_json(backend.to_str(), None, special)
    assert own.encode_prompt("") == start
    assert own.encode_prompt("walk") == own.encode("walk") == [0]


def test_an_empty_prompt_that_adds_its_own_token() -> None:
    """Where the tokenizer writes the beginning itself, that is the prompt."""
    backend = Backend(models.WordLevel({"walk": 0, "<s>": 1, "</s>": 2}))
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    own = Tokenizer.from_json(backend.to_str(), None, {"bos_token": "<s>"})
    assert own.encode_prompt("") == [2]


def test_an_empty_prompt_without_a_beginning() -> None:
    """Where the model has neither, the prompt is refused."""
    own = Tokenizer.from_json(Backend(models.WordLevel({"walk": 0})).to_str(), None, {})
    with pytest.raises(InvalidRequest, match=r"^prompt: it has no tokens") as caught:
        own.encode_prompt("")
    assert caught.value.param == "prompt"


def test_truncation_and_padding_that_a_file_asks_for_are_off() -> None:
    """As transformers turns them off for every call."""
    backend = train_tokenizer().backend_tokenizer
    backend.enable_truncation(2)
    backend.enable_padding(length=40)
    own = Tokenizer.from_json(backend.to_str(), None, {})
    assert own.decode(own.encode("You may not use this file.")) == "You may not use this file."


def test_what_is_no_tokenizer_is_said() -> None:
    """A file of another kind."""
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.from_json("{}", None, {})
