"""A model's tokenizer without transformers, with the same results: token ids, text, and the bytes of a token."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tokenizers

from runtime.encoder_types import EncoderInput, Truncation
from runtime.errors import InvalidRequest

_SHORT = 4096  # characters; encoding them takes a few milliseconds
_SPACE_SIGN = "\u2581"  # SentencePiece's character for a space


class Encoding(Protocol):
    """The interface of the tokenizers library's ``Encoding``: a text's tokens and their positions."""

    @property
    def ids(self) -> list[int]:
        """The token ids."""

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        """Return the start and end of a token in the text; None for a token that is not from the text."""


class Tokenizer:
    """Converts text to token ids and back.

    Args:
        backend: a ``tokenizers.Tokenizer``, or an object with its interface.
        chat_template: the source of the model's chat template, see ``runtime.model.chat_template``; None for none.
        special_tokens: texts of special tokens by the names that templates use (``bos_token``, ``eos_token``, ...).
    """

    def __init__(self, backend: Any, chat_template: str | None, special_tokens: Mapping[str, str]) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.chat_template = chat_template
        self.special_tokens = special_tokens
        self.added_tokens: Mapping[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()

    @classmethod
    def from_json(cls, text: str, chat_template: str | None, special_tokens: Mapping[str, str]) -> Tokenizer:
        """Build a tokenizer from the content of a ``tokenizer.json``.

        Raises:
            ValueError: the text is not a valid ``tokenizer.json``.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a tokenizer: {error}") from error
        return cls(backend, chat_template, special_tokens)

    def to_json(self) -> str:
        """Return the tokenizer as the content of a ``tokenizer.json``."""
        text: str = self._backend.to_str()
        return text

    @property
    def eos_token_id(self) -> int | None:
        """The id of ``eos_token``; None if there is none."""
        return self._special_id("eos_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    @functools.cached_property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token, which encodes text without other tokens; None if there is none."""
        model = getattr(self._backend, "model", None)
        unknown = getattr(model, "unk_token", self.special_tokens.get("unk_token"))
        return None if unknown is None else self._backend.token_to_id(unknown)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return a text's token ids; control tokens that are written in the text become control tokens.

        Args:
            text: any text.
            add_special_tokens: whether the tokenizer adds its own tokens around the text (often a BOS token).
        """
        (encoding,) = self.encodings([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def encodings(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Encoding]:
        """Encode several texts, with the positions of tokens; arguments as for ``encode``."""
        if sum(map(len, texts)) < _SHORT:
            return [self._backend.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        # Unlike ``encode``, this lets other Python threads run.
        encodings: list[Encoding] = self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        return encodings

    def encode_inputs(
        self, texts: Sequence[str | tuple[str, str]], limit: int, truncate: Truncation
    ) -> list[EncoderInput | int]:
        """Encode texts or pairs of texts for an encoder, with the tokens that the tokenizer adds around and between.

        Args:
            texts: the texts or pairs.
            limit: maximum number of tokens of one input.
            truncate: what is done with a longer input, or with the second text of a longer pair.

        Returns:
            For each text its tokens or, if it is too long and not cut, their number; the same if the first text of a
            pair leaves no room for the second.
        """
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = [text[1] for text in texts if not isinstance(text, str)]
        encoded = self._backend.encode_batch(firsts, add_special_tokens=False)
        others = iter(self._backend.encode_batch(seconds, add_special_tokens=False))
        found: list[EncoderInput | int] = []
        for text, first in zip(texts, encoded, strict=True):
            second = None if isinstance(text, str) else next(others)
            added = self._backend.num_special_tokens_to_add(second is not None)
            length = len(first) + (0 if second is None else len(second)) + added
            if length > limit:
                kept = limit - added - (0 if second is None else len(first))
                if truncate == "none" or kept < 1:
                    found.append(length)
                    continue
                cut = first if second is None else second
                cut.truncate(kept, direction="left" if truncate == "start" else "right")
            whole = self._backend.post_process(first, second, True)
            types = tuple(whole.type_ids)
            found.append(EncoderInput(tuple(whole.ids), types if any(types) else ()))
        return found

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt, at least one; for a text without tokens, the BOS or else the EOS token.

        Raises:
            InvalidRequest: the text has no tokens, and the tokenizer has neither of the two.
        """
        if ids := self.encode(text):
            return ids
        for name in ("bos_token", "eos_token"):
            if (start := self._special_id(name)) is not None:
                return [start]
        raise InvalidRequest("prompt: it has no tokens, and this model has none to begin a text with", param="prompt")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids.

        Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart of a character (The Unicode Standard,
        section 3.9), as in byte-level decoders. The ``ByteFallback`` decoder alone gives one for every byte of the
        whole run of byte tokens, and loses the complete characters in it.
        """
        if self._byte_tokens.keys().isdisjoint(ids):
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
            return text
        shown = [i for i in ids if self.has_text(i)] if skip_special_tokens else ids
        tokens: list[str] = []
        for byte_run, group in itertools.groupby(shown, self._byte_tokens.__contains__):
            if byte_run:
                tokens += _valid(bytes(self._byte_tokens[i] for i in group))
            else:
                tokens += [token for i in group if (token := self._backend.id_to_token(i)) is not None]
        text = self._backend.decoder.decode(tokens)
        return text

    def has_text(self, token_id: int) -> bool:
        """Return whether a token appears in decoded text; special tokens and unknown ids do not."""
        added = self.added_tokens.get(token_id)
        return self._backend.id_to_token(token_id) is not None and not (added is not None and added.special)

    def token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it (``Ġthe``); None for an unknown id."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text, possibly a part of a character; empty for an unknown id."""
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if (byte := self._byte_tokens.get(token_id)) is not None:
            return bytes([byte])
        if token_id in self.added_tokens:
            return token.encode()
        if "ByteLevel" in self._decoders:
            signs = _byte_of_sign()
            return bytes(signs[c] for c in token) if all(c in signs for c in token) else token.encode()
        if _SPACE_SIGN in token and self._decoders & {"Metaspace", "Replace"}:
            return token.replace(_SPACE_SIGN, " ").encode()
        return self.decode([token_id]).encode()

    @functools.cached_property
    def _byte_tokens(self) -> Mapping[int, int]:
        """The bytes that the tokens of a ``ByteFallback`` decoder represent, by token id."""
        if "ByteFallback" not in self._decoders:
            return {}
        ids = {self._backend.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        return {token_id: byte for token_id, byte in ids.items() if token_id is not None}

    @functools.cached_property
    def _decoders(self) -> frozenset[str]:
        """The type names of the decoder's steps."""
        if self._backend.decoder is None:
            return frozenset()
        state = json.loads(self._backend.decoder.__getstate__())
        return frozenset(step["type"] for step in state.get("decoders", [state]))


def _valid(raw: bytes) -> list[str]:
    """Return tokens that ``ByteFallback`` decodes to the same characters, with U+FFFD for invalid bytes."""
    tokens: list[str] = []
    for character in raw.decode("utf-8", "replace"):
        tokens += [character] if character == "\ufffd" else [f"<0x{byte:02X}>" for byte in character.encode()]
    return tokens


@functools.cache
def _byte_of_sign() -> dict[str, int]:
    """Return the byte for each of GPT-2's byte characters: printable bytes are themselves, others are U+0100 and up."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}
