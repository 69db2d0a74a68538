"""Finds the end-of-sequence tokens of a model: in its configuration, its vocabulary and its chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runtime.errors import ServiceError
from runtime.model.chat_template import ChatTemplate
from runtime.model.tokenizer import Tokenizer
from runtime.types import Message

# Tokens that end a turn or a text in all model families that have them, from llama.cpp's ``llama-vocab.cpp``.
_TEXTS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[ "
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|> <\uff5cend\u2581of\u2581sentence\uff5c>"
)
END_TEXTS = frozenset(_TEXTS.split())
# Ends a text only if it is a control token; in Gemma 3 it is the HTML tag.
_END_IF_SPECIAL = "</s>"
_GGUF_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_MARK = "Hello."


def end_ids(configured: int | Iterable[int] | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of all tokens that end a sequence, in ascending order.

    Args:
        configured: the end ids of the generation config.
        tokenizer: the model's tokenizer; its ``eos_token``, added tokens and chat template are searched.
    """
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    added = {token.content: (i, token.special) for i, token in tokenizer.added_tokens.items()}
    ids.update(i for text, (i, special) in added.items() if text in END_TEXTS or (text == _END_IF_SPECIAL and special))
    if (closing := _closing_token(tokenizer, added)) is not None:
        ids.add(closing)
    # In OpenAI's Harmony format and Solar Open, <|end|> ends a message, and an answer has several messages.
    if added.keys() >= {"<|return|>", "<|call|>"} or added.keys() >= {"<|calls|>", "<|flush|>"}:
        ids.discard(added.get("<|end|>", (None, True))[0])
    return tuple(sorted(ids))


def gguf_end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end ids that a GGUF file's metadata names: ``tokenizer.ggml.eos_token_id`` and similar keys."""
    ids = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _GGUF_KEYS)
    return tuple(sorted({i for i in ids if i is not None}))


def _closing_token(tokenizer: Tokenizer, added: Mapping[str, tuple[int, bool]]) -> int | None:
    """Return the id of the control token that the chat template writes after an assistant's message, if any."""
    if not tokenizer.chat_template:
        return None
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
    try:
        text = template.marks.unmark(template.render([Message("user", "Hi."), Message("assistant", _MARK)]))
    except ServiceError:  # a template that does not compile or refuses this chat shows no token
        return None
    behind = text.partition(_MARK)[2].lstrip()
    found = [token for token, (_, special) in added.items() if special and token and behind.startswith(token)]
    return added[max(found, key=len)][0] if found else None
