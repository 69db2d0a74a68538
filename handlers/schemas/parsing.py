"""Validates payloads, and turns pydantic's errors into ``InvalidRequest`` with messages for the caller."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runtime.errors import InvalidRequest, ThreadUnsupported

M = TypeVar("M", bound=BaseModel)

_ERRORS = {error.code: error for error in (ThreadUnsupported,)}  # by the kind of the first validation error
_MAX_ERRORS = 1000  # more are only counted: rendering a megabyte of them blocks the event loop for longer than a token


def parse(model: type[M], payload: object) -> M:
    """Validate a payload with a request model.

    Raises:
        InvalidRequest: fields are wrong or unknown; ``param`` names the first one, the message up to five.
    """
    if not isinstance(payload, dict):
        raise InvalidRequest("the request must be a JSON object")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        if error.error_count() > _MAX_ERRORS:
            raise InvalidRequest(f"{error.error_count()} fields are wrong or unknown") from None
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        faults = [(_path(_without_branches(item)), _explain(item["type"], item["msg"])) for item in problems[:5]]
        raise _ERRORS.get(problems[0]["type"], InvalidRequest)(
            "; ".join(f"{path}: {text}" if path else text for path, text in faults), param=faults[0][0] or None
        ) from None


def parse_stream(model: type[M], payload: object) -> M:
    """Validate the payload of a call to ``stream``: as ``parse``, with the field ``stream`` set to true.

    Raises:
        InvalidRequest: fields are wrong or unknown, as in ``parse``.
    """
    if isinstance(payload, dict) and (payload.get("stream") is None or payload["stream"] is False):
        payload = payload | {"stream": True}
    return parse(model, payload)


def _without_branches(error: ErrorDetails) -> tuple[int | str, ...]:
    """Return an error's location without the branches of unions that are named in angle brackets."""
    if not error["loc"]:  # a rule about several fields
        return ()
    *location, last = error["loc"]
    known = [part for part in location if not str(part).startswith("<")]
    return (*known, *([] if str(last).startswith("<") and error["type"] != "extra_forbidden" else [last]))


def _path(location: tuple[int | str, ...]) -> str:
    # pydantic adds a union's branch to the path after messages.N.content, and "[key]" to the path of a
    # dict's key; a caller knows fields and indexes only.
    if location[:1] == ("messages",) and location[2:4] in (("content", "text"), ("content", "parts")):
        location = location[:3] + location[4:]
    if location[:2] in (("tool_choice", "mode"), ("tool_choice", "named"), ("tool_choice", "allowed")):
        location = location[:1] + location[2:]
    if location[:1] == ("logit_bias",) and location[2:] == ("[key]",):
        location = location[:2]
    return ".".join(_printable(str(part)) or "''" for part in location)


def _explain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "model_type":
        return "input should be an object"  # pydantic would name the class
    return _printable(message[:1].lower() + message[1:])


def _printable(text: str) -> str:
    """Escape lone surrogates and unprintable characters, for any encoding and log; cut off after 200 characters."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in clean[:200])
