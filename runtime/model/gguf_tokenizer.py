"""Builds the tokenizer of a GGUF file from the file's metadata.

Keys, their meaning and the resulting tokens are those of llama.cpp (``llama-vocab.cpp``). Where llama.cpp differs from
a family's own tokenizer, the latter is followed; ``runtime.model.gguf_pretokenizers`` says where.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from runtime.errors import ModelUnavailable
from runtime.model.gguf_pretokenizers import DEFAULT, PRETOKENIZERS, PreTokenizer
from runtime.model.gguf_vocabulary import GGUFVocabulary, TokenKind
from runtime.model.merges import pairs_forming
from runtime.model.tokenizer import Tokenizer

_log = logging.getLogger("warmstart.load")

_SPACE = "\u2581"  # SentencePiece's character for a space
_TEMPLATE_NAMES = {  # names of special tokens in transformers' templates -> keys that hold the tokens' ids
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # the format's spelling
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Control and unknown tokens become special tokens, user-defined ones become added tokens: both are matched in a text
    before all others. Unused tokens are never matched.

    Args:
        metadata: the file's metadata, from ``runtime.model.gguf_header``.

    Raises:
        ModelUnavailable: the tokenizer is not supported; the message names the unsupported part.
        ValueError: the metadata is inconsistent.
    """
    vocabulary = GGUFVocabulary(metadata)
    build = _BUILDERS.get(vocabulary.model)
    if build is None:
        raise ModelUnavailable(
            f"the GGUF file has tokenizer.ggml.model={vocabulary.model!r}, which is not supported (supported: "
            f"{', '.join(_BUILDERS)})"
        )
    if len(suppressed := metadata.get("tokenizer.ggml.suppress_tokens", ())):
        raise ModelUnavailable(f"the GGUF file has {len(suppressed)} tokenizer.ggml.suppress_tokens: not supported")
    with _garbage_collection_paused():
        backend = build(vocabulary)
    strips = _strips(metadata)
    # In one call, because each call rebuilds the search for added tokens.
    backend.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind != TokenKind.USER_DEFINED, rstrip=strips(text))
            for text, kind in vocabulary.of_kinds(TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED)
            if text
        ]
    )
    if vocabulary.model == "bert":
        _surround_pieces(backend, vocabulary)
    else:
        _surround(backend, vocabulary)
    names = {name: token for name, key in _TEMPLATE_NAMES.items() if (token := vocabulary.named(key)) is not None}
    return Tokenizer(backend, metadata.get("tokenizer.chat_template"), names)


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause the search for unreachable cycles in a block: half a million pairs would set it off again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pretokenizer_name(vocabulary: GGUFVocabulary) -> str:
    name: str = "gemma4" if vocabulary.model == "gemma4" else vocabulary.get("pre", "")
    return name


def _pretokenizer(vocabulary: GGUFVocabulary) -> PreTokenizer:
    """Return the vocabulary's pre-tokenizer; llama.cpp's default, with a warning, if the file names none.

    Raises:
        ModelUnavailable: the file names an unknown one.
    """
    name = _pretokenizer_name(vocabulary)
    if name in ("", "default"):
        _log.warning(
            "the GGUF file does not say how its tokenizer cuts texts (tokenizer.ggml.pre): llama.cpp's default is "
            "taken, and answers may be worse than the model's; convert the model again to mend it"
        )
        return DEFAULT
    if name not in PRETOKENIZERS:
        raise ModelUnavailable(f"the GGUF file has tokenizer.ggml.pre={name!r}, which is not known")
    return PRETOKENIZERS[name]


def _byte_pairs(vocabulary: GGUFVocabulary) -> Backend:
    """Build a ``gpt2`` or ``gemma4`` tokenizer: byte pair encoding with merges (arXiv:1508.07909).

    It works on bytes or, if the pre-tokenizer is not byte-level, on characters.
    """
    rule = _pretokenizer(vocabulary)
    splits: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits]
    backend = Backend(
        models.BPE(
            vocabulary.ids,
            vocabulary.merges(),
            ignore_merges=rule.ignore_merges,
            byte_fallback=not rule.byte_level,
        )
    )
    steps: list[Any] = [normalizers.NFC()] if rule.nfc else []
    if rule.byte_level:
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.decoder = decoders.ByteLevel()
    else:
        steps.append(normalizers.Replace(" ", _SPACE))
        backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return backend


def _sentencepiece_pairs(vocabulary: GGUFVocabulary) -> Backend:
    """Build a ``llama`` tokenizer: SentencePiece's byte pair encoding (arXiv:1808.06226), merged by score."""
    backend = Backend(
        models.BPE(
            vocabulary.ids,
            _merges_by_score(vocabulary),
            unk_token=vocabulary.named("unknown_token_id"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    _spell_spaces(backend, vocabulary, before=[])
    return backend


def _unigram(vocabulary: GGUFVocabulary) -> Backend:
    """Build a ``t5`` tokenizer: SentencePiece's unigram model (arXiv:1804.10959)."""
    scores = vocabulary.scores().tolist()
    kinds = vocabulary.kinds.tolist()
    normal = [s for s, kind in zip(scores, kinds, strict=False) if kind == TokenKind.NORMAL]
    lowest = min(normal, default=0.0)
    pieces = []
    for i, (text, kind) in enumerate(zip(vocabulary.tokens, kinds, strict=True)):
        if kind == TokenKind.NORMAL:
            pieces.append((text, scores[i]))
        elif kind == TokenKind.USER_DEFINED:
            pieces.append((text, 0.0))
        else:  # lowest score, and a text that occurs nowhere unless it is an added token
            pieces.append((text if vocabulary.ids.get(text) == i else f"\0{i}", lowest))
    backend = Backend(models.Unigram(pieces, vocabulary.get("unknown_token_id", 2), byte_fallback=False))
    charsmap = vocabulary.get("precompiled_charsmap")
    _spell_spaces(backend, vocabulary, before=[] if charsmap is None else [normalizers.Precompiled(charsmap.tobytes())])
    return backend


def _word_pieces(vocabulary: GGUFVocabulary) -> Backend:
    """Build a ``bert`` tokenizer: WordPiece (arXiv:1810.04805). The file marks the pieces that begin a word, where
    WordPiece marks the others.
    """
    ids = {}
    for text, index in vocabulary.ids.items():
        normal = vocabulary.kinds[index] == TokenKind.NORMAL
        ids[text[1:] if text.startswith(_SPACE) else f"##{text}" if normal else text] = index
    unknown = vocabulary.named("unknown_token_id") or "[UNK]"
    backend = Backend(models.WordPiece(ids, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


_BUILDERS: dict[str, Callable[[GGUFVocabulary], Backend]] = {
    "gpt2": _byte_pairs,
    "llama": _sentencepiece_pairs,
    "t5": _unigram,
    "gemma4": _byte_pairs,
    "bert": _word_pieces,
}


def _spell_spaces(backend: Backend, vocabulary: GGUFVocabulary, before: Sequence[Any]) -> None:
    """Set the normalizer and decoder that convert spaces to SentencePiece's character and back.

    Args:
        backend: the tokenizer to change.
        vocabulary: the file's vocabulary and metadata.
        before: normalizers to apply first.
    """
    steps = list(before)
    if vocabulary.get("remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    prefixed = vocabulary.get("add_space_prefix", True)
    if prefixed:
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefixed else parts)


def _merges_by_score(vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    """Return every pair of tokens that forms another token, ordered by the score of the result, highest first."""
    order = np.argsort(-np.asarray(vocabulary.scores()[: len(vocabulary.tokens)], np.float32), kind="stable")
    normal = order[np.isin(vocabulary.kinds, (TokenKind.NORMAL, TokenKind.UNDEFINED))[order]]
    return pairs_forming([text for text in map(vocabulary.tokens.__getitem__, normal.tolist()) if text])


def _surround(backend: Backend, vocabulary: GGUFVocabulary) -> None:
    """Add the BOS and EOS tokens around every text if the file, or the default of its tokenizer type, says so."""
    model = vocabulary.model
    rule = PRETOKENIZERS.get(_pretokenizer_name(vocabulary), DEFAULT)
    before = vocabulary.get("add_bos_token", model == "llama" or (model != "t5" and rule.add_bos))
    after = vocabulary.get("add_eos_token", model == "t5")
    bos = vocabulary.named("bos_token_id") if before else None
    eos = vocabulary.named("eos_token_id") if after else None
    if bos is None and eos is None:
        return
    between = vocabulary.get("add_sep_token", rule.add_sep)  # as a cross-encoder has two texts
    sep = (vocabulary.named("seperator_token_id") or eos) if between else None
    pair = (bos, "$A", eos, sep, "$B", eos)
    backend.post_processor = processors.TemplateProcessing(
        single=[token for token in (bos, "$A", eos) if token is not None],
        pair=[token for token in pair if token is not None],
        special_tokens=[(token, vocabulary.ids[token]) for token in {bos, eos, sep} if token is not None],
    )


def _surround_pieces(backend: Backend, vocabulary: GGUFVocabulary) -> None:
    """Add BERT's tokens around a text, and between the texts of a pair."""
    begin = vocabulary.named("cls_token_id") or vocabulary.named("bos_token_id")
    end = vocabulary.named("seperator_token_id") or vocabulary.named("eos_token_id")
    if begin is None or end is None:
        raise ModelUnavailable("the GGUF file names no tokens around a text (tokenizer.ggml.cls_token_id)")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(token, vocabulary.ids[token]) for token in (begin, end)],
    )


def _strips(metadata: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a function that says whether a token strips the blanks after it.

    Phi-3's tokens do; no metadata key says so, only the model's name.
    """
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" in name or "phi3" in name:
        return lambda text: text not in ("<unk>", "<s>", "<|endoftext|>")
    return lambda text: False
