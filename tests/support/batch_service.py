"""Batches of a running service, over HTTP: upload, create, wait, download."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from loadtests.service import Service

PATIENCE = 120  # seconds


def call(service: Service, path: str, payload: Any = None) -> Any:
    """Send a request and return the answer's JSON."""
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(service.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def upload(service: Service, text: str) -> str:
    """Upload an input file and return its id."""
    body = (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n{text}\r\n--b--\r\n'
    ).encode()
    request = urllib.request.Request(
        f"{service.url}/v1/files", body, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["id"])


def create(service: Service, text: str, endpoint: str) -> str:
    """Upload an input file, create its batch and return the batch's id."""
    request = {"input_file_id": upload(service, text), "endpoint": endpoint, "completion_window": "24h"}
    return str(call(service, "/v1/batches", request)["id"])


def done(service: Service, batch_id: str, more_than: int) -> dict[str, Any]:
    """Wait until a batch has more rows with a result than a number, or has ended."""
    end = time.monotonic() + PATIENCE
    while True:
        batch: dict[str, Any] = call(service, f"/v1/batches/{batch_id}")
        counts = batch["request_counts"]
        if batch["status"] in ("completed", "failed", "expired") or counts["completed"] + counts["failed"] > more_than:
            return batch
        assert time.monotonic() < end, (batch, service.log.read_text()[-3000:])
        time.sleep(0.01)


def lines(service: Service, file_id: str) -> list[dict[str, Any]]:
    """Return the lines of an output file."""
    with urllib.request.urlopen(f"{service.url}/v1/files/{file_id}/content", timeout=60) as answer:
        return [json.loads(line) for line in answer.read().splitlines()]
