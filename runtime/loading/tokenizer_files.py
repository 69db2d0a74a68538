"""Reads a tokenizer from ``tokenizer.json`` and ``tokenizer_config.json`` without transformers, if that gives the same.

For some model types, transformers 5 builds the tokenizer anew from the vocabulary with fixed normalizers and
pre-tokenizers. ``tokenizer.json`` is used for these only if it describes the same steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from runtime.model.tokenizer import Tokenizer

_GENERIC = {"TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer"}
_GENERIC_TYPES: tuple[str, ...] = (
    "mistral",
    "ministral",
    "granite",
    "ernie4_5",
    "phi3",
    "glm",
    "glm4",
    "olmo2",
    "olmo3",
)
_GENERIC_TYPES += ("gpt_bigcode", "nemotron", "stablelm")
_GENERIC_TYPES += ("mixtral", "flex_olmo", "granitemoe", "granitemoeshared", "ernie4_5_moe", "glm4_moe", "minimax_m2")
CLASSES = {
    **dict.fromkeys(_GENERIC_TYPES, "TokenizersBackend"),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("olmo", "olmoe", "gpt_neox"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "opt", "starcoder2", "gptj", "phi"), "GPT2Tokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
}
"""Tokenizer classes of transformers by the model types for which it has one."""
OVERRULED = {"qwen2", "ernie4_5", "ernie4_5_moe", "phi3", "nemotron", "minimax_m2"}
"""Model types for which transformers does not believe the class that a checkpoint names."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOO_LARGE = 100_000  # tokens, from which transformers corrects a pattern in older Mistral tokenizers
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_MODEL = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
_STEPS: dict[str, dict[str, Any]] = {  # what transformers builds for a class, and its default special tokens
    "GPT2Tokenizer": {
        "model": _MODEL,
        "normalizer": None,
        "pre_tokenizer": {**_BYTES, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "tokens": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    },
    "Qwen2Tokenizer": {
        "model": _MODEL,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_PATTERN}, "behavior": "Isolated", "invert": False},
                {**_BYTES, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel"},
        "tokens": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    },
    "GemmaTokenizer": {
        "model": {**_MODEL, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "tokens": {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
    },
}


def tokenizer_from_files(folder: Path) -> Tokenizer | None:
    """Return a checkpoint's tokenizer, without a chat template; None if it must be read with transformers.

    Raises:
        ValueError, OSError: a file is damaged or cannot be read.
    """
    files = {name: folder / f"{name}.json" for name in ("tokenizer", "tokenizer_config", "config")}
    if not all(file.is_file() for file in files.values()):
        return None
    config: dict[str, Any] = json.loads(files["tokenizer_config"].read_bytes())
    text = files["tokenizer"].read_text(encoding="utf-8")
    content, model = json.loads(text), json.loads(files["config"].read_bytes())
    name = _class(model, config, content)
    unusual = ("auto_map", "fast_tokenizer_files", "split_special_tokens", "add_prefix_space")
    if any(config.get(option) for option in unusual) or (folder / "tekken.json").exists():
        return None
    if name != "TokenizersBackend" and not _same_steps(name, content, config):
        return None
    legacy = (folder / "special_tokens_map.json", folder / "added_tokens.json")
    if "added_tokens_decoder" not in config and any(file.is_file() for file in legacy):
        return None
    backend = tokenizers.Tokenizer.from_str(text)
    if model.get("model_type") in ("mistral", "ministral") and backend.get_vocab_size() > _TOO_LARGE:
        return None
    defaults: dict[str, str] = _STEPS[name]["tokens"] if name in _STEPS else {}
    named = {**defaults, **_special_tokens(config)}
    _add_tokens(backend, config, content, named)
    return Tokenizer(backend, None, named)


def _class(model: Mapping[str, Any], config: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return the class with which transformers' ``AutoTokenizer`` reads a checkpoint.

    Args:
        model: the content of ``config.json``.
        config: the content of ``tokenizer_config.json``.
        content: the content of ``tokenizer.json``.
    """
    kind = str(model.get("model_type"))
    registered = CLASSES.get(kind)
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    if declared is None:
        return registered or "TokenizersBackend"
    declared = str(declared) if declared in _GENERIC else str(declared).removesuffix("Fast")
    if declared == "LlamaTokenizer" and "ByteLevel" in json.dumps(content.get("pre_tokenizer")):
        return "TokenizersBackend"
    if registered in _GENERIC:
        return "TokenizersBackend"
    if registered is not None and registered != declared and kind in OVERRULED:
        return registered
    return "TokenizersBackend" if declared in _GENERIC else declared


def _same_steps(name: str, content: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a ``tokenizer.json`` describes the steps and added tokens that transformers would build.

    Args:
        name: transformers' class.
        content: the content of ``tokenizer.json``.
        config: the content of ``tokenizer_config.json``.
    """
    steps = _STEPS.get(name)
    if steps is None:
        return False
    model = {key: content["model"].get(key) for key in steps["model"]}
    plain = not any(content["model"].get(key) for key in _AFFIXES) and model == steps["model"]
    pieces = ("normalizer", "pre_tokenizer", "decoder")
    same = all(_without_offsets(content.get(piece), piece) == steps[piece] for piece in pieces)
    tokens = {str(token["id"]): {**token, "id": None} for token in content.get("added_tokens") or []}
    listed = {key: {**token, "id": None} for key, token in (config.get("added_tokens_decoder") or {}).items()}
    return plain and same and tokens == listed


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")


def _without_offsets(step: Any, piece: str) -> Any:
    """Return a step without the options that affect only the positions of tokens, or only other kinds of steps."""
    if isinstance(step, list):
        return [_without_offsets(part, piece) for part in step]
    if not isinstance(step, dict):
        return step
    dropped = {"trim_offsets"} | ({"add_prefix_space", "use_regex"} if piece == "decoder" else set())
    return {key: _without_offsets(value, piece) for key, value in step.items() if key not in dropped}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of special tokens by name."""
    names = {name: config[name] for name in (*_NAMED, *config) if name.endswith("_token") and config.get(name)}
    extra = config.get("extra_special_tokens")
    names |= extra if isinstance(extra, Mapping) else {}
    found = {}
    for name, token in names.items():
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _add_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], content: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Add the tokens that a ``tokenizer_config.json`` lists and names, as transformers does.

    Args:
        backend: the tokenizer, changed in place.
        config: the content of ``tokenizer_config.json``.
        content: the content of ``tokenizer.json``.
        named: the named special tokens.
    """
    listed = config.get("added_tokens_decoder")
    if listed is None:
        listed = {token["id"]: token for token in content.get("added_tokens") or []}
    tokens = []
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        flags = {flag: value for flag, value in token.items() if flag not in ("content", "id", "__type")}
        flags["special"] = flags.get("special") or token["content"] in named.values()
        tokens.append(AddedToken(token["content"], **flags))
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | {t.content for t in tokens}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    for token in (*named.values(), *(extra if isinstance(extra, list) else ())):
        text = token["content"] if isinstance(token, Mapping) else str(token)
        if text not in known:
            known.add(text)
            tokens.append(AddedToken(text, special=True))
    backend.add_tokens(tokens)
