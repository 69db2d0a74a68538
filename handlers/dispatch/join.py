"""Joins the chunks of an operation's stream into its whole response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from handlers.generation.answer_parser import message
from handlers.generation.messages_output import finished_block

Chunk = dict[str, Any]


def join(operation: str, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Join a stream's chunks. Values that differ between calls (an id, a time, a load's state) are the stream's.

    Args:
        operation: the name of an operation that streams.
        chunks: all chunks of the stream; those of ``chat`` and ``completions`` with ``include_usage``.

    Returns:
        The response as ``handle`` returns it, with the same members in the same order.
    """
    return _JOINS[operation](chunks)


def _text(chunks: Sequence[Chunk]) -> dict[str, Any]:
    *pieces, last = chunks
    sequences = []
    for index, found in enumerate(_by_index(pieces)):
        sequence = {"index": index, "text": _joined(found, "text"), "finish_reason": found[-1]["finish_reason"]}
        if "logprobs" in found[0]:
            sequence["logprobs"] = [entry for piece in found for entry in piece["logprobs"]]
        sequences.append(sequence)
    return {"text": sequences[0]["text"], "sequences": sequences, "model": last["model"], "usage": last["usage"]}


def _chat(chunks: Sequence[Chunk]) -> dict[str, Any]:
    choices = []
    for index, found in enumerate(_by_index(choice for chunk in chunks for choice in chunk["choices"])):
        reported = [piece["logprobs"]["content"] for piece in found if piece["logprobs"] is not None]
        choices.append(
            {
                "index": index,
                "message": message(piece["delta"] for piece in found if "role" not in piece["delta"]),
                "finish_reason": found[-1]["finish_reason"],
                "logprobs": {"content": [entry for entries in reported for entry in entries]} if reported else None,
            }
            | {"stop_reason": found[-1]["stop_reason"]}
            | _token_ids(found)
        )
    return _whole(chunks, "chat.completion", choices)


def _completions(chunks: Sequence[Chunk]) -> dict[str, Any]:
    choices = []
    for index, found in enumerate(_by_index(choice for chunk in chunks for choice in chunk["choices"])):
        columns = found[0]["logprobs"]
        if columns is not None:
            columns = {name: [entry for piece in found for entry in piece["logprobs"][name]] for name in columns}
        choices.append(
            {
                "index": index,
                "text": _joined(found, "text"),
                "finish_reason": found[-1]["finish_reason"],
                "logprobs": columns,
            }
            | {"stop_reason": found[-1]["stop_reason"]}
            | {name: found[0][name] for name in ("prompt_token_ids",) if name in found[0]}
            | _token_ids(found)
        )
    return _whole(chunks, "text_completion", choices)


def _last(chunks: Sequence[Chunk]) -> dict[str, Any]:
    return chunks[-1]


def _response(chunks: Sequence[Chunk]) -> dict[str, Any]:
    response: dict[str, Any] = chunks[-1]["response"]
    return response


def _message(chunks: Sequence[Chunk]) -> dict[str, Any]:
    events = _by_type(chunks)
    (start,), (end,) = events["message_start"], events["message_delta"]
    pieces = [
        (event["index"], next(reversed(event["delta"].values()))) for event in events.get("content_block_delta", ())
    ]
    content = [
        finished_block(event["content_block"], "".join(piece for index, piece in pieces if index == event["index"]))
        for event in events.get("content_block_start", ())
    ]
    ended: Chunk = start["message"] | {"content": content} | end["delta"]
    return ended | {"usage": ended["usage"] | end["usage"]}


def _ollama(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Join the lines of an answer of Ollama's API: the last has all members but the text."""
    logprobs = [entry for chunk in chunks for entry in chunk.get("logprobs", ())]
    joined: dict[str, Any] = {}
    for name, value in chunks[-1].items():
        joined[name] = value
        if name == "message":
            said = [chunk["message"] for chunk in chunks]
            calls = [call for piece in said for call in piece.get("tool_calls", ())]
            joined[name] = {"role": "assistant"} | _said(said, "content") | ({"tool_calls": calls} if calls else {})
        elif name == "response":
            joined |= _said(chunks, "response")
    return joined | ({"logprobs": logprobs} if logprobs else {})


def _said(pieces: Sequence[Chunk], name: str) -> dict[str, Any]:
    thinking = _joined(pieces, "thinking")
    return {name: _joined(pieces, name)} | ({"thinking": thinking} if thinking else {})


def _by_type(chunks: Sequence[Chunk]) -> dict[str, list[Chunk]]:
    found: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk["type"], []).append(chunk)
    return found


def _whole(chunks: Sequence[Chunk], kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    head = {name: value for name, value in chunks[0].items() if name not in ("choices", "usage")}
    return head | {"object": kind, "choices": choices, "usage": chunks[-1]["usage"]}


def _token_ids(pieces: Sequence[Chunk]) -> dict[str, list[int]]:
    found = [piece["token_ids"] for piece in pieces if "token_ids" in piece]
    return {"token_ids": [token_id for ids in found for token_id in ids]} if found else {}


def _by_index(pieces: Iterable[Chunk]) -> list[list[Chunk]]:
    found: dict[int, list[Chunk]] = {}
    for piece in pieces:
        found.setdefault(piece["index"], []).append(piece)
    return [found[index] for index in sorted(found)]


def _joined(pieces: Sequence[Chunk], name: str) -> str:
    return "".join(piece.get(name, "") for piece in pieces)


_JOINS: Mapping[str, Callable[[Sequence[Chunk]], dict[str, Any]]] = MappingProxyType(
    {
        "generate": _text,
        "complete": _text,
        "chat": _chat,
        "completions": _completions,
        "responses": _response,
        "messages": _message,
        "ollama_chat": _ollama,
        "ollama_generate": _ollama,
        "compare": _last,
        "load_model": _last,
    }
)
