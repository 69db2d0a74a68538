"""Joins the chunks of an operation's stream into its whole response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

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
                "message": {"role": "assistant", "content": _joined([piece["delta"] for piece in found], "content")},
                "finish_reason": found[-1]["finish_reason"],
                "logprobs": {"content": [entry for entries in reported for entry in entries]} if reported else None,
            }
        )
    return _whole(chunks[-1], "chat.completion", choices)


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
        )
    return _whole(chunks[-1], "text_completion", choices)


def _last(chunks: Sequence[Chunk]) -> dict[str, Any]:
    return chunks[-1]


def _whole(last: Chunk, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": last["id"], "object": kind, "created": last["created"], "model": last["model"]}
    return head | {"choices": choices, "usage": last["usage"]}


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
        "compare": _last,
        "load_model": _last,
    }
)
