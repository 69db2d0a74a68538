"""What a server streams, made by hand."""

from __future__ import annotations

import json
from typing import Any

USAGE = {"prompt_tokens": 84, "completion_tokens": 4, "total_tokens": 88}


def line(event: Any) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def chunk(content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if content is None else {"content": content}, **more}]}


ANSWER = [chunk(""), chunk("It is"), chunk(" Pâris"), chunk(finish_reason="stop"), {"choices": [], "usage": USAGE}]
BODY = b"".join(line(event) for event in ANSWER) + b"data: [DONE]\n\n"
