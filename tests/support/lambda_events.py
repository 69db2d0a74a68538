"""AWS Lambda events and invocation contexts for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "events/fixtures/lambda"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """Load an event fixture by name."""
    event: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return event


@dataclass
class Invocation:
    """The context object of AWS's runtime client.

    Args:
        aws_request_id: the invocation's id.
        seconds: the remaining time, always the same.
    """

    aws_request_id: str = "9f3c2d7e-1b4a-4c5d-8e6f-7a8b9c0d1e2f"
    seconds: float = 30.0

    def get_remaining_time_in_millis(self) -> int:
        return round(self.seconds * 1e3)


def sqs(*records: dict[str, Any]) -> dict[str, Any]:
    """Return an SQS event of these records; missing fields are those of the fixture."""
    whole = load("sqs_standard")["Records"][0]
    return {
        "Records": [
            whole
            | {"messageId": f"message-{number}"}
            | record
            | {"attributes": whole["attributes"] | record.get("attributes", {})}
            for number, record in enumerate(records, 1)
        ]
    }


def attributes(**values: str) -> dict[str, Any]:
    """Return SQS message attributes; ``_`` in a name stands for ``-``."""
    return {name.replace("_", "-"): {"stringValue": value, "dataType": "String"} for name, value in values.items()}
