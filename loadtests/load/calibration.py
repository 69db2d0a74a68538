"""Asks a server, before a run, for its model and for what its tokenizer makes of the prompts' words."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from loadtests.load.answer import json_object, read_complete
from loadtests.load.http_answer import BadAnswer
from loadtests.load.http_client import ConnectionPool
from loadtests.load.prompts import Prompts, calibrated
from loadtests.load.scenario import Scenario
from loadtests.load.work import PATHS, WorkKind

_WORDS = (20, 200)
_MODELS_SECONDS = 10.0
_CHATS = ("chat", "structured", "tools")


class LoadError(Exception):
    """The run cannot go on; the message says why."""


def served_model(pool: ConnectionPool) -> str | None:
    """Return the first model that ``/v1/models`` lists; None if the server has no such list."""
    try:
        response, _, _ = pool.request("GET", "/v1/models", seconds=_MODELS_SECONDS)
        found = json_object(response.body()).get("data") if response.status == 200 else None
        return str(found[0]["id"]) if found else None
    except (BadAnswer, OSError, LookupError, TypeError):
        return None


def calibrate(scenario: Scenario, pool: ConnectionPool, model: str | None, salt: int) -> Prompts:
    """Return prompts that have the wanted numbers of tokens on this server, which also shows that it answers.

    Args:
        scenario: the scenario; without a kind of work with random words over HTTP nothing is asked.
        pool: the server's connections.
        model: the model to name.
        salt: see ``Prompts``.

    Raises:
        LoadError: the server does not answer, or its usage cannot be used.
    """
    work = next((kind for kind in scenario.work if kind.kind in PATHS and not kind.prompt), None)
    if work is None:
        return Prompts(salt)
    try:
        counted = [_prompt_tokens(work, pool, model, salt, words, scenario.timeout_seconds) for words in _WORDS]
        return calibrated(salt, _WORDS, (counted[0], counted[1]))
    except (BadAnswer, OSError, ValueError) as error:
        raise LoadError(f"the server does not answer a {work.name} request: {error}") from None


def _prompt_tokens(
    work: WorkKind, pool: ConnectionPool, model: str | None, salt: int, words: int, seconds: float
) -> int:
    text = Prompts(salt).text(words, Random(words), f"calibration/{words}")
    body: dict[str, Any] = {"model": model} if model else {}
    if work.kind in _CHATS:
        body |= {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    elif work.kind == "embedding":
        body["input"] = text
    else:
        body |= {"prompt": text, "max_new_tokens" if work.kind == "generate" else "max_tokens": 1}
    path = "/v1/chat/completions" if work.kind in _CHATS and not work.path else work.path or PATHS[work.kind]
    response, began, ended = pool.request("POST", path, json.dumps(body).encode(), seconds)
    if response.status != 200:
        raise BadAnswer(f"HTTP {response.status}: {response.body().decode(errors='replace')[:500]}")
    return read_complete(response.body(), began, ended, generates=False).prompt_tokens
