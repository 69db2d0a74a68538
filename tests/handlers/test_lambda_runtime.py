"""The function as its container runs it: AWS's own runtime interface client, and the runtime API around it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.lambda_events import load
from tests.support.lambda_runtime_api import RuntimeApi, function


@pytest.mark.slow
def test_a_container_from_its_start_on(tmp_path: Path) -> None:
    """The model is loaded once, before the first event; calls of all kinds follow, errors and a freeze among them."""
    log = tmp_path / "log"
    with function(log, IDEMPOTENCY="memory", LOG_FORMAT="json") as api:
        kind, answer = api.invoke(load("function_url_base64"))
        assert kind == "response"
        assert "Paris" in answer["body"]
        lines = log.read_text()
        assert lines.index("is ready: load") < lines.index("POST /v1/chat/completions")  # in the init phase

        kind, error = api.invoke(load("s3"))
        assert (kind, error["errorType"]) == ("error", "InvalidRequest")
        assert json.loads(error["errorMessage"])["error"]["code"] == "invalid_request"

        assert api.invoke(load("sqs_standard")) == (
            "response",
            {"batchItemFailures": [{"itemIdentifier": "00000002-1d2e-4f3a-8b4c-5d6e7f8091a2"}]},
        )
        direct = {"operation": "complete", "payload": {"prompt": "The sky is", "max_new_tokens": 8, "temperature": 0}}
        _, before = api.invoke(direct)
        _late_answer(api)
        _freeze(api)
        assert _said(api.invoke(direct)) == before["text"]
        _, models = api.invoke(load("apigw_http_v2_stage"))
        assert models["statusCode"] == 200
    assert log.read_text().count("is ready: load") == 1


def _said(found: tuple[str, Any]) -> str:
    kind, answer = found
    assert kind == "response", answer
    return str(answer["text"])


def _late_answer(api: RuntimeApi) -> None:
    """The deadline that comes with an event is kept: there is an answer before Lambda would end the process."""
    event = load("apigw_rest_post")
    event["body"] = json.dumps(
        {"prompt": "x", "min_new_tokens": 1900, "max_new_tokens": 1900, "num_return_sequences": 8}
    )
    kind, answer = api.invoke(event, seconds=2)
    assert (kind, answer["statusCode"]) == ("response", 504)


def _freeze(api: RuntimeApi) -> None:
    """As Lambda does between two calls: nothing of it runs, and its clock goes on."""
    assert api.process is not None
    api.process.send_signal(signal.SIGSTOP)
    time.sleep(2)  # not to wait for anything: it is what happens
    api.process.send_signal(signal.SIGCONT)


def test_a_wrong_setting_is_an_init_error(tmp_path: Path) -> None:
    """Lambda is told what is wrong before there is any call, and the process ends."""
    with function(tmp_path / "log", DTYPE="int3") as api:
        assert api.process is not None
        assert api.process.wait(60) == 1
    (error,) = api.init_errors
    assert error["errorType"] == "SettingsError"
    assert "DTYPE" in error["errorMessage"]
