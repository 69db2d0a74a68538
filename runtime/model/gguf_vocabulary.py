"""The vocabulary of a GGUF file, from the file's metadata (llama.cpp's ``llama-vocab.cpp``)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelUnavailable
from runtime.model.end_tokens import END_TEXTS

_DEFAULT_IDS = {  # of tokens whose keys a file may omit
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "bert": {"unknown_token_id": 100, "cls_token_id": 101, "seperator_token_id": 102, "padding_token_id": 0},
    "t5": {"eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 0},
}


class TokenKind(IntEnum):
    """The token types in ``tokenizer.ggml.token_type``."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class GGUFVocabulary:
    """The checked vocabulary of a GGUF file: tokens, their kinds, scores, merges and special ids.

    Raises:
        ModelUnavailable: the file has no vocabulary.
        ValueError: the arrays have different lengths, or two tokens have the same text.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.model: str = self.get("model", "")
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ModelUnavailable("the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
        self.tokens: list[str] = tokens
        given = self.get("token_type")
        kinds = np.full(len(tokens), TokenKind.NORMAL) if given is None else np.array(given)
        if len(kinds) < len(tokens):
            raise ValueError("tokenizer.ggml.token_type is shorter than tokenizer.ggml.tokens")
        self.kinds: NDArray[Any] = kinds[: len(tokens)]
        used = self.kinds != TokenKind.UNUSED
        if "" in tokens:
            used &= np.fromiter(map(bool, tokens), bool, len(tokens))
        indices = range(len(tokens)) if used.all() else np.flatnonzero(used).tolist()
        self.ids: dict[str, int] = dict(zip(map(tokens.__getitem__, indices), indices, strict=True))
        if len(self.ids) < len(indices):
            raise ValueError("tokenizer.ggml.tokens has two tokens of the same text")
        # Some converters marked end-of-turn tokens as normal text, which no prompt could then contain.
        for text in END_TEXTS & self.ids.keys():
            if self.kinds[self.ids[text]] == TokenKind.NORMAL:
                self.kinds[self.ids[text]] = TokenKind.CONTROL

    def get(self, key: str, default: Any = None) -> Any:
        """Return the metadata value of ``tokenizer.ggml.{key}``."""
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def of_kinds(self, *kinds: TokenKind) -> list[tuple[str, int]]:
        """Return the tokens of some kinds, with their kinds, in ascending order of their ids."""
        indices = np.flatnonzero(np.isin(self.kinds, kinds)).tolist()
        return [(self.tokens[i], int(self.kinds[i])) for i in indices]

    def scores(self) -> Any:
        """Return the tokens' scores [V] or more.

        Raises:
            ValueError: they are missing or too few.
        """
        scores = self.get("scores")
        if scores is None or len(scores) < len(self.tokens):
            raise ValueError("tokenizer.ggml.scores is missing or too short")
        return scores

    def named(self, key: str) -> str | None:
        """Return the text of the token whose id is in ``tokenizer.ggml.{key}``; None if there is no such token."""
        index = self.get(key, _DEFAULT_IDS.get(self.model, {}).get(key))
        return self.tokens[index] if index is not None and index < len(self.tokens) else None

    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs of ``tokenizer.ggml.merges`` whose parts and result are in the vocabulary.

        The first blank of a line that is not its first character separates the two parts.

        Raises:
            ModelUnavailable: the file has no merges.
        """
        lines = self.get("merges")
        if lines is None:
            raise ModelUnavailable("the GGUF file has no tokenizer.ggml.merges")
        ids, pairs = self.ids, []
        for line in lines:
            at = line.find(" ", 1)
            left, right = line[:at], line[at + 1 :]
            if left in ids and right in ids and left + right in ids:
                pairs.append((left, right))
        return pairs
