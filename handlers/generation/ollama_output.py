"""Builds Ollama's answers and the lines of their streams from chat completions and completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from handlers.generation.translated_chat import Event, call_arguments
from runtime.errors import ServiceError


def utc(seconds: float) -> str:
    """Return a Unix time as RFC 3339 has it, with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(seconds: float) -> int:
    """Return a duration in nanoseconds."""
    return round(seconds * 1e9)


class AnswerLines:
    """Builds an answer piece by piece: each method returns the lines of the stream for what it adds.

    Args:
        model: the model's name.
        chat: whether the lines have a ``message``, as those of a chat, instead of a ``response``.
        now: returns the Unix time.
        elapsed: returns the seconds since the request.
        loaded: seconds in which the model was loaded or waited for.
        alternatives: how many of the likeliest tokens are returned with each token.
    """

    def __init__(
        self,
        model: str,
        *,
        chat: bool,
        now: Callable[[], float],
        elapsed: Callable[[], float],
        loaded: float,
        alternatives: int = 0,
    ) -> None:
        self._model = model
        self._chat = chat
        self._now = now
        self._elapsed = elapsed
        self._loaded = loaded
        self._alternatives = alternatives
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls: dict[int, dict[str, Any]] = {}  # name, and pieces of the arguments, by index
        self._reason = "stop"

    def start(self) -> list[Event]:
        """Return no lines: the first one has the first piece of the text."""
        return []

    def add(self, choice: Mapping[str, Any]) -> list[Event]:
        """Add a choice of a chunk, or the only choice of a whole completion.

        Args:
            choice: the choice, with a ``delta``, a ``message`` or a ``text``.
        """
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if choice.get("finish_reason") == "length":
            self._reason = "length"
        for index, call in enumerate(delta.get("tool_calls") or ()):
            self._add_call(call.get("index", index), call)
        text, thinking = delta.get("content") or "", delta.get("reasoning_content") or ""
        logprobs = _logprobs(choice.get("logprobs"), self._alternatives)
        self._text.append(text)
        self._thinking.append(thinking)
        self._logprobs += logprobs
        if not text and not thinking and not logprobs:
            return []
        return [self._line(text, thinking) | ({"logprobs": logprobs} if logprobs else {})]

    def finish(self, last: Mapping[str, Any]) -> list[Event]:
        """Return the last lines: the calls of tools, and the counts and times.

        Args:
            last: the last chunk, or the whole completion, with the usage and the timings.
        """
        calls = self._finished_calls()
        lines = [self._line("", "", calls)] if calls else []
        return [*lines, self._line("", "") | self._end(last)]

    def failed(self, error: ServiceError) -> list[Event]:
        """Return no lines: a stream ends with the error alone."""
        return []

    def whole(self, last: Mapping[str, Any]) -> Event:
        """Return the whole answer, of all choices that were added.

        Args:
            last: the whole completion, with the usage and the timings.
        """
        answer = self._line("".join(self._text), "".join(self._thinking), self._finished_calls())
        return answer | self._end(last) | ({"logprobs": self._logprobs} if self._logprobs else {})

    def without_text(self, reason: str) -> Event:
        """Return the answer to a request without a prompt.

        Args:
            reason: what was done with the model: ``load`` or ``unload``.
        """
        return self._line("", "") | {"done": True, "done_reason": reason}

    def _line(self, text: str, thinking: str, calls: list[dict[str, Any]] | None = None) -> Event:
        thought = {"thinking": thinking} if thinking else {}
        said: dict[str, Any] = {"response": text} | thought
        if self._chat:
            called = {"tool_calls": calls} if calls else {}
            said = {"message": {"role": "assistant", "content": text} | thought | called}
        return {"model": self._model, "created_at": utc(self._now())} | said | {"done": False}

    def _end(self, last: Mapping[str, Any]) -> Event:
        usage, timings = last["usage"], last.get("timings") or {"prompt_ms": 0.0, "predicted_ms": 0.0}
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": nanoseconds(self._elapsed()),
            "load_duration": nanoseconds(self._loaded),
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": nanoseconds(timings["prompt_ms"] / 1000),
            "eval_count": usage["completion_tokens"],
            "eval_duration": nanoseconds(timings["predicted_ms"] / 1000),
        }

    def _add_call(self, index: int, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        known = self._calls.setdefault(index, {"id": call.get("id"), "name": "", "arguments": []})
        known["name"] = function.get("name") or known["name"]
        known["arguments"].append(function.get("arguments") or "")

    def _finished_calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "function": {
                    "index": index,
                    "name": call["name"],
                    "arguments": call_arguments("".join(call["arguments"])),
                },
            }
            for index, call in sorted(self._calls.items())
        ]


def _logprobs(found: Mapping[str, Any] | None, alternatives: int) -> list[dict[str, Any]]:
    """Return the log-probabilities of tokens from those of a chat completion, or from the columns of a completion."""
    if found is None:
        return []
    if "content" in found:
        return [
            _entry(entry["token"], entry["logprob"], [(top["token"], top["logprob"]) for top in entry["top_logprobs"]])
            for entry in found["content"]
        ]
    rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    return [_entry(token, logprob, list(likeliest.items())[:alternatives]) for token, logprob, likeliest in rows]


def _entry(token: str, logprob: float, likeliest: Sequence[tuple[str, float]]) -> dict[str, Any]:
    top = [{"token": other, "logprob": value} for other, value in likeliest]
    return {"token": token, "logprob": logprob, "top_logprobs": top}
