"""Keys that are good, for the services under attack."""

from __future__ import annotations

import base64
import json
from hashlib import sha256

from runtime.keys.records import new_key

SECRET = bytes(range(32))
SIGNING_ID = "k_signs"


def record(key: str, key_id: str = "k_one", *scopes: str, **more: object) -> str:
    """What the service is told of an API key."""
    about = {"id": key_id, "name": "attacks", "scopes": list(scopes or ("*",)), "created": 1, "expires": None}
    return json.dumps(about | {"sha256": sha256(key.encode()).hexdigest()} | more)


def signing_record(**more: object) -> str:
    """What the service is told of the signing key."""
    about = {"id": SIGNING_ID, "name": "signs", "scopes": ["*"], "created": 1, "expires": None}
    return json.dumps(about | {"hmac_secret": base64.b64encode(SECRET).decode()} | more)


KEY = new_key()
"""One good key, for one run of the tests."""
