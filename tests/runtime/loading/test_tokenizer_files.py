"""A tokenizer that is read from its files alone is the one that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from runtime.loading.checkpoint_tokenizer import read_tokenizer, wrap
from runtime.loading.tokenizer_files import _STEPS, CLASSES, OVERRULED, tokenizer_from_files
from runtime.model.families import FAMILIES
from tests.support.models import ROOT

TEXT = (
    "Hello, world!  It's 12345 o'clock;\n\n\ttabs and   runs of spaces.\r\n"
    "Grüße, caf\u00e9 cafe\u0301, 你好\uff0c世界, здравствуй, مرحبا, 👩‍👩‍👧 🙂<|im_end|> <extra> <end> </s>"
)
CONTROL = ("<|endoftext|>", "<|im_end|>", "<unk>", "<bos>", "<eos>", "<pad>", "<mask>")


def trained(kind: str) -> Tokenizer:
    """A small tokenizer of the steps that a class has."""
    gemma = kind == "GemmaTokenizer"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True) if gemma else models.BPE())
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    if kind == "Qwen2Tokenizer":
        from tokenizers import Regex

        pattern = _STEPS[kind]["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    alphabet = [] if gemma else pre_tokenizers.ByteLevel.alphabet()
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if gemma else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*CONTROL, *pieces], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text().splitlines(), trainer)
    if gemma:
        plain = json.loads(tokenizer.to_str())
        plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(plain))
        bos = tokenizer.token_to_id("<bos>")
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", bos)])
    return tokenizer


def saved(folder: Path, kind: str, model_type: str, **config: Any) -> Path:
    """A checkpoint's tokenizer files."""
    tokenizer = trained(kind.removesuffix("Fast"))
    tokenizer.add_tokens([AddedToken("<extra>", lstrip=True, special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    listed = {
        str(i): {name: getattr(token, name) for name in ("content", "lstrip", "normalized", "rstrip", "single_word")}
        | {"special": token.special}
        for i, token in tokenizer.get_added_tokens_decoder().items()
    }
    given = {"tokenizer_class": kind, "added_tokens_decoder": listed, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("PreTrainedTokenizerFast", "llama", {"bos_token": "<bos>", "eos_token": "<|im_end|>", "pad_token": None}),
    ("TokenizersBackend", "smollm3", {"eos_token": {"__type": "AddedToken", "content": "<eos>", "lstrip": False}}),
    ("GPT2Tokenizer", "gpt2", {}),
    ("GPT2TokenizerFast", "granite", {"eos_token": "<eos>", "unk_token": "<|endoftext|>", "add_bos_token": True}),
    ("GPT2Tokenizer", "llama", {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_end|>", "<new>"]}),
    ("Qwen2Tokenizer", "qwen2", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}),
    ("Qwen2TokenizerFast", "qwen3", {"errors": "replace", "split_special_tokens": False}),
    ("PreTrainedTokenizerFast", "qwen3", {"eos_token": "<eos>"}),
    ("GemmaTokenizer", "gemma3_text", {"add_bos_token": True, "boi_token": "<extra>"}),
    ("GemmaTokenizerFast", "gemma", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    ("LlamaTokenizerFast", "llama", {"bos_token": "<bos>", "eos_token": "<eos>"}),
]


@pytest.mark.parametrize(("kind", "model_type", "config"), CASES)
def test_it_is_the_one_of_transformers(kind: str, model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    """The same tokens and texts, special tokens, and added tokens with all their flags."""
    folder = saved(tmp_path, kind, model_type, **config)
    actual = tokenizer_from_files(folder)
    assert actual is not None
    expected = wrap(AutoTokenizer.from_pretrained(folder))
    for special in (True, False):
        assert actual.encode(TEXT, add_special_tokens=special) == expected.encode(TEXT, add_special_tokens=special)
    ids = expected.encode(TEXT)
    for skip in (True, False):
        assert actual.decode(ids, skip_special_tokens=skip) == expected.decode(ids, skip_special_tokens=skip)
    assert actual.special_tokens == expected.special_tokens
    assert {i: repr(t) for i, t in actual.added_tokens.items()} == {
        i: repr(t) for i, t in expected.added_tokens.items()
    }
    assert actual.unk_token_id == expected.unk_token_id


def change(folder: Path, file: str, **fields: Any) -> None:
    content = json.loads((folder / file).read_bytes())
    (folder / file).write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("kind", "model_type", "file", "fields"),
    [
        ("GPT2Tokenizer", "gpt2", "tokenizer.json", {"normalizer": {"type": "NFKC"}}),
        ("GPT2Tokenizer", "llama", "tokenizer.json", {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}),
        ("GPT2Tokenizer", "gpt2", "tokenizer_config.json", {"added_tokens_decoder": {}}),
        ("Qwen2Tokenizer", "qwen2", "tokenizer.json", {"normalizer": None}),
        ("LlamaTokenizer", "llama", "tokenizer.json", {"pre_tokenizer": None}),
        ("CohereTokenizer", "cohere", "config.json", {}),
        ("PreTrainedTokenizerFast", "llama", "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
        ("PreTrainedTokenizerFast", "llama", "tokenizer_config.json", {"split_special_tokens": True}),
    ],
)
def test_others_are_left_to_transformers(
    kind: str, model_type: str, file: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Where its class builds other steps, or the files ask for more."""
    folder = saved(tmp_path, kind, model_type)
    change(folder, file, **fields)
    assert tokenizer_from_files(folder) is None


def test_the_class_of_each_family_is_the_one_of_transformers() -> None:
    """The tables agree with those of the installed version."""
    for kind in FAMILIES:
        registered = TOKENIZER_MAPPING_NAMES.get(kind)
        assert CLASSES.get(kind) == ("TokenizersBackend" if registered == "MistralCommonBackend" else registered), kind
    assert set(FAMILIES) & MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS == OVERRULED


@pytest.mark.parametrize(
    ("files", "config", "chosen"),
    [
        ({}, "own", "own"),
        ({}, [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}], "one"),
        ({"chat_template.jinja": "file"}, "own", "file"),
        ({"additional_chat_templates/tool_use.jinja": "tools", "chat_template.jinja": "file"}, None, "file"),
        ({"additional_chat_templates/tool_use.jinja": "tools"}, None, None),
        ({"chat_template.json": '{"chat_template": "processor"}'}, None, "processor"),
        ({}, None, None),
    ],
)
def test_chat_templates(files: dict[str, str], config: Any, chosen: str | None, tmp_path: Path) -> None:
    """From wherever a checkpoint keeps them."""
    folder = saved(tmp_path, "PreTrainedTokenizerFast", "llama", chat_template=config)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    assert read_tokenizer(folder).chat_template == chosen
