"""Reads the tokenizer of a checkpoint in transformers' layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.loading.tokenizer_files import tokenizer_from_files
from runtime.model.tokenizer import Tokenizer

_log = logging.getLogger("warmstart.load")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read a checkpoint's tokenizer, with transformers only if there is no other way to the same result."""
    tokenizer = tokenizer_from_files(folder)
    if tokenizer is not None:
        tokenizer.chat_template = _default_template(_template_of_files(folder) or _processor_template(folder))
        return tokenizer
    from transformers import AutoTokenizer  # takes seconds to import

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not loaded.chat_template:
        loaded.chat_template = _processor_template(folder)
    return wrap(loaded)


def _template_of_files(folder: Path) -> Any:
    """Return the chat template, or several by name, from a checkpoint's files, of which those of their own go first."""
    main, more = folder / "chat_template.jinja", sorted((folder / "additional_chat_templates").glob("*.jinja"))
    templates = {file.stem: file.read_text(encoding="utf-8") for file in more}
    if main.is_file():
        templates["default"] = main.read_text(encoding="utf-8")
    if templates:
        return templates
    template = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    if isinstance(template, list):
        return {item["name"]: item["template"] for item in template}
    return template


def wrap(tokenizer: Any) -> Tokenizer:
    """Wrap one of transformers' tokenizers, implemented in Rust or in Python, as a ``Tokenizer``."""
    template = _default_template(tokenizer.chat_template)
    backend = getattr(tokenizer, "backend_tokenizer", None) or _PythonBackend(tokenizer)
    return Tokenizer(backend, template, dict(tokenizer.special_tokens_map))


def _default_template(templates: str | Mapping[str, str] | None) -> str | None:
    """Return the chat template that transformers uses for a chat without tools; None if there is none.

    Raises:
        ValueError: the template is not text.
    """
    if isinstance(templates, Mapping):
        if "default" not in templates:
            _log.warning(
                "no chat template is named default, so chats are written plainly; there are %s", list(templates)
            )
        templates = templates.get("default")
    if not isinstance(templates, str | None):
        raise ValueError("a chat template is not text")
    return templates or None


def _processor_template(folder: Path) -> Any:
    """Return a multimodal processor's chat template in the older layout, ``chat_template.json``; None without one."""
    file = folder / "chat_template.json"
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None


class _PythonBackend:
    """Adapts a tokenizer that transformers implements in Python only to the interface of the tokenizers library."""

    decoder = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def no_truncation(self) -> None:
        """Do nothing: truncation and padding are never on."""

    no_padding = no_truncation

    def get_added_tokens_decoder(self) -> Mapping[int, Any]:
        """Return the added tokens by id. See the tokenizers library."""
        added: Mapping[int, Any] = self._tokenizer.added_tokens_decoder
        return added

    def token_to_id(self, token: str) -> Any:
        """Return a token's id. See the tokenizers library."""
        return self._tokenizer.convert_tokens_to_ids(token)

    def id_to_token(self, token_id: int) -> Any:
        """Return the token of an id. See the tokenizers library."""
        return self._tokenizer.convert_ids_to_tokens(token_id)

    def encode(self, text: str, *, add_special_tokens: bool) -> _PythonEncoding:
        """Encode a text. See the tokenizers library."""
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return _PythonEncoding(ids, text, self.get_added_tokens_decoder())

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[_PythonEncoding]:
        """Encode several texts. See the tokenizers library."""
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """Return the text of token ids. See the tokenizers library."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


class _PythonEncoding:
    """Token ids, and the positions of added tokens, which are searched in the text from left to right."""

    def __init__(self, ids: list[int], text: str, added: Mapping[int, Any]) -> None:
        self.ids = ids
        self._places: dict[int, tuple[int, int]] = {}
        end = 0
        for index, token_id in enumerate(ids):
            if token_id in added and (start := text.find(added[token_id].content, end)) >= 0:
                end = start + len(added[token_id].content)
                self._places[index] = start, end

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        """Return an added token's start and end in the text; None for other tokens. See the tokenizers library."""
        return self._places.get(token_index)
