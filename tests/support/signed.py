"""Helpers of the signature tests: a key, and messages with any fields."""

from __future__ import annotations

import base64
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from multidict import CIMultiDict

from runtime.signatures.client import Signer
from runtime.signatures.message import SignedMessage, mac_of, signature_base
from runtime.signatures.structured_fields import BareItem, serialise

KEY_ID, SECRET = "k_signing", bytes(range(32))
RECORD = {
    "id": KEY_ID,
    "name": "signer",
    "scopes": ["*"],
    "created": 1,
    "expires": None,
    "hmac_secret": base64.b64encode(SECRET).decode(),
}
NOW = 1_700_000_000


def record(**fields: Any) -> str:
    """Return the signing key's record, with changed fields."""
    return json.dumps(RECORD | fields)


def signer(**options: Any) -> Signer:
    """Return a signer with the signing key."""
    return Signer(KEY_ID, SECRET, **options)


def message(
    method: str = "GET",
    target: str = "/",
    *,
    authority: str = "example.com",
    scheme: str = "http",
    fields: Mapping[str, str] | Sequence[tuple[str, str]] = (),
) -> SignedMessage:
    """Return a request with these header fields; several lines of one field are several pairs."""
    lines = CIMultiDict(fields)
    return SignedMessage(method, target, scheme, authority, lambda name: lines.getall(name, []))


def params(**changes: BareItem | None) -> dict[str, BareItem]:
    """Return the parameters of a valid signature at ``NOW``; None leaves one out."""
    found: dict[str, BareItem | None] = {
        "created": NOW,
        "expires": NOW + 60,
        "nonce": "0123456789abcdef",
        "keyid": KEY_ID,
        "tag": "warmstart",
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def with_signature(
    unsigned: SignedMessage, components: Sequence[str], text_params: Mapping[str, BareItem], secret: bytes = SECRET
) -> dict[str, str]:
    """Return ``Signature-Input`` and ``Signature`` over any components, valid or not, made without the client."""
    covered = "(" + " ".join(f'"{name}"' for name in components) + ")"
    text = covered + "".join(f";{name}={_text(value)}" for name, value in text_params.items())
    mac = mac_of(signature_base(unsigned, components, text), secret)
    return {"Signature-Input": f"sig={text}", "Signature": f"sig=:{b64encode(mac).decode()}:"}


def _text(value: BareItem) -> str:
    from runtime.signatures.structured_fields import Item

    return serialise(Item(value, {}))
