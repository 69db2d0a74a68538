"""Verifies request signatures by this service's rules: covered components, lifetime, and single use."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from binascii import a2b_base64
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Final

from runtime.signatures import SignatureError
from runtime.signatures.digest import verify_digest
from runtime.signatures.message import (
    ALGORITHM,
    DEFAULT_COMPONENTS,
    DEFAULT_COMPONENTS_WITH_BODY,
    Signature,
    SignedMessage,
    prepared_mac,
    read_signature,
    signature_base,
)
from runtime.signatures.nonces import Nonces
from runtime.signatures.structured_fields import Parameters
from runtime.types import Caller

TAG: Final = "warmstart"
COVERED: Final = DEFAULT_COMPONENTS
"""The components that every signature must cover; with a body also ``content-digest``."""

_DIGEST = "content-digest"
_KNOWN = frozenset({"created", "expires", "nonce", "keyid", "tag", "alg"})
_NONCE_CHARS = range(16, 129)
_SHOWN = 60  # characters of a wrong name that an error repeats
_SKEW_SECONDS = 5  # how far a client's clock may be ahead
_SECRETS = 1024  # secrets for which the prepared HMAC is cached

# Both fields joined by a line break, in the usual form: all required parameters, in any order, and no others except
# ``alg``. No value contains a semicolon, so counting semicolons detects duplicates.
_match_usual = re.compile(
    r"""([a-z][a-z0-9_-]{0,63})=(\("@method"\ "@authority"\ "@path"\ "@query"(\ "content-digest")?\)
    (?:;(?:created=([1-9][0-9]{0,14})|expires=([1-9][0-9]{0,14})|nonce="([A-Za-z0-9+/=_-]{16,128})"
    |keyid="([A-Za-z0-9._-]+)"|(tag="warmstart")|(alg="hmac-sha256"))){5,6})
    \n\1=:([A-Za-z0-9+/]{43}=):""",
    re.VERBOSE | re.ASCII,
).fullmatch


Claim = tuple[tuple[str, ...], str, bytes, int, int, str, str]
"""A parsed signature: components, text and MAC as in ``Signature``; ``created``, ``expires``, ``nonce``, ``keyid``."""


class Verifier:
    """Verifies requests (RFC 9421 section 3.2).

    Args:
        find: a function from a key id to its caller and secret; None for an unknown or expired key.
        nonces: the store of used nonces.
        window: the longest lifetime of a signature, ``created`` to ``expires``, in seconds.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        find: Callable[[str], tuple[Caller, bytes] | None],
        nonces: Nonces,
        window: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._find = find
        self._nonces = nonces
        self._window = window
        self._clock = clock
        self._unknown_secret = secrets.token_bytes(32)
        self._prepared_mac = lru_cache(_SECRETS)(prepared_mac)

    async def verify(self, message: SignedMessage, read: Callable[[], Awaitable[bytes]] | None) -> Caller:
        """Verify a request's signature, and return the caller that signed it.

        Args:
            message: the request.
            read: reads the body as sent; None if there is none. Called only after the signature proved valid, so that
                unauthenticated clients cannot make the service wait.

        Raises:
            SignatureError: the signature is missing or invalid. The message is the same for an unknown key and for a
                wrong signature.
            NoncesUnavailable: the store of used nonces is unavailable or full.
        """
        digests = message.fields(_DIGEST)
        components, text, claimed, created, expires, nonce, key_id = read_claim(
            message.fields("signature-input"), message.fields("signature"), read is not None or bool(digests)
        )
        caller, secret = self._find(key_id) or (None, self._unknown_secret)
        now = self._clock()
        if created > now + _SKEW_SECONDS:
            raise SignatureError("created is in the future; check the client's clock")
        if expires > created + self._window:
            raise SignatureError(f"expires is more than {self._window} seconds after created")
        if now >= expires:
            raise SignatureError("the signature has expired; sign each request again")
        mac = self._prepared_mac(secret)(signature_base(message, components, text))
        if not hmac.compare_digest(mac, claimed) or caller is None:
            raise SignatureError("the key is unknown, or the signature is not one of this request with that key")
        if digests:
            verify_digest(", ".join(digests), b"" if read is None else await read())
        await self._nonces.use(key_id, nonce, created, expires)  # last: only a client with the key can fill the store
        return caller


def read_claim(inputs: Sequence[str], signatures: Sequence[str], with_body: bool) -> Claim:
    """Parse the only signature of a message, and check its coverage and parameters.

    Args:
        inputs: the lines of ``Signature-Input``.
        signatures: the lines of ``Signature``.
        with_body: whether ``content-digest`` must be covered.

    Raises:
        SignatureError: the signature is missing or malformed, or lacks a required component or parameter.
    """
    if len(inputs) == len(signatures) == 1 and (usual := _match_usual(f"{inputs[0]}\n{signatures[0]}")):
        _, text, digest, created, expires, nonce, key_id, tag, alg, mac = usual.groups()
        once = text.count(";") == (5 if alg is None else 6)
        if created and expires and nonce and key_id and tag and once and (digest or not with_body):
            components = DEFAULT_COMPONENTS_WITH_BODY if digest else DEFAULT_COMPONENTS
            return components, text, a2b_base64(mac), int(created), int(expires), nonce, key_id
    # The general parser takes four times as long.
    signature = read_signature(inputs, signatures)
    _check_coverage(signature, with_body)
    params = signature.params
    key_id, nonce = _names(params)
    times = _time(params, "created"), _time(params, "expires")
    return signature.components, signature.text, signature.mac, *times, nonce, key_id


def _check_coverage(signature: Signature, with_body: bool) -> None:
    missing = [name for name in COVERED if name not in signature.components]
    if with_body and _DIGEST not in signature.components:
        missing.append(_DIGEST)
    if missing:
        raise SignatureError(f"the signature must cover {', '.join(missing)} too")


def _names(params: Parameters) -> tuple[str, str]:
    """Check the parameters other than times, and return ``keyid`` and ``nonce``."""
    if unknown := params.keys() - _KNOWN:
        raise SignatureError(f"a signature has no parameter {min(unknown)[:_SHOWN]!a} here")
    key_id, nonce = params.get("keyid"), params.get("nonce")
    if type(key_id) is not str:
        raise SignatureError("keyid is missing, or not a string")
    if type(nonce) is not str or len(nonce) not in _NONCE_CHARS:
        raise SignatureError(f"nonce must be a string of {_NONCE_CHARS.start} to {_NONCE_CHARS.stop - 1} characters")
    if params.get("tag") != TAG or type(params["tag"]) is not str:
        raise SignatureError(f'tag must be "{TAG}"')
    if "alg" in params and (params["alg"] != ALGORITHM or type(params["alg"]) is not str):
        raise SignatureError(f'alg must be "{ALGORITHM}"')
    return key_id, nonce


def _time(params: Parameters, name: str) -> int:
    value = params.get(name)
    if type(value) is not int:  # by type, because bool is a subclass of int
        raise SignatureError(f"{name} is missing, or not an integer")
    return value
