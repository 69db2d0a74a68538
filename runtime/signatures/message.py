"""Builds signature bases (RFC 9421 section 2), computes ``hmac-sha256`` (section 3.3.3) and parses signatures."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from runtime.signatures import SignatureError
from runtime.signatures.structured_fields import (
    InnerList,
    Item,
    Parameters,
    parse_dictionary,
    serialise,
)

ALGORITHM: Final = "hmac-sha256"

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_BLOCK = 64  # block size of SHA-256 in bytes
_SHOWN = 60  # characters of a component's name that an error repeats

# Absolute form (RFC 9112 section 3.2.2). Targets other than this, "/..." and "*" are for CONNECT, or invalid.
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")

DEFAULT_COMPONENTS: Final = ("@method", "@authority", "@path", "@query")
DEFAULT_COMPONENTS_WITH_BODY: Final = (*DEFAULT_COMPONENTS, "content-digest")
"""The components that clients cover by default in a request with a body, in this order."""


class SignedMessage(NamedTuple):
    """The parts of a request that can be signed.

    Args:
        method: the method as sent.
        target: the request target as sent, before any decoding (RFC 9112 section 3.2).
        scheme: ``http`` or ``https``.
        authority: the host and port to which the request was sent, as ``normalised`` returns them.
        fields: a function from the lower-case name of a header field to its lines, in order; empty if there is none.
    """

    method: str
    target: str
    scheme: str
    authority: str
    fields: Callable[[str], Sequence[str]]


class Signature(NamedTuple):
    """A parsed signature.

    Args:
        components: the names of the covered components, in order.
        params: the signature parameters, such as ``created`` and ``keyid`` (section 2.3).
        text: the canonical text of the two above: the value of ``@signature-params``.
        mac: the signature's bytes.
    """

    components: tuple[str, ...]
    params: Parameters
    text: str
    mac: bytes


def normalised(authority: str, scheme: str) -> str:
    """Return host and port in lower case, without the scheme's default port (RFC 9421 section 2.2.3)."""
    return authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":")).removesuffix(":")


def signature_text(components: Sequence[str], params: Parameters) -> str:
    """Return the value of ``@signature-params`` (section 2.3), which is also the value in ``Signature-Input``."""
    return serialise(InnerList(tuple([Item(name, {}) for name in components]), params))


def signature_base(message: SignedMessage, components: Sequence[str], text: str) -> bytes:
    """Build the signature base (section 2.5).

    Args:
        message: the request.
        components: the names of the covered components. Header fields and the derived components of requests are
            supported, except for ``@query-param``; parameters of components are not.
        text: the value of ``@signature-params``, as in ``Signature``.

    Raises:
        SignatureError: a component is unknown, missing in the message, or contains characters that cannot be signed.
    """
    path, query, rest = _split(message)
    if components in (DEFAULT_COMPONENTS, DEFAULT_COMPONENTS_WITH_BODY):  # one f-string takes half the time
        base = f'"@method": {message.method}\n"@authority": {message.authority}\n"@path": {path}\n"@query": {query}\n'
        if len(components) > len(DEFAULT_COMPONENTS):
            base += f'"content-digest": {_field("content-digest", message)}\n'
    else:
        derived = {"@method": message.method, "@authority": message.authority, "@path": path, "@query": query}
        base = "".join(
            [f'"{name}": {derived[name] if name in derived else _other(name, message, rest)}\n' for name in components]
        )
    # A value with a line break could forge the line of another component (section 7.5.7).
    if base.count("\n") != len(components) or "\r" in base or not base.isascii():
        raise SignatureError("a signed component has line breaks or characters that are not ASCII")
    return f'{base}"@signature-params": {text}'.encode()


def mac_of(base: bytes, secret: bytes) -> bytes:
    """Return the HMAC with SHA-256 (RFC 2104) of a signature base."""
    return hmac.digest(secret, base, "sha256")


def prepared_mac(secret: bytes) -> Callable[[bytes], bytes]:
    """Return ``mac_of`` for one secret, faster for repeated use.

    OpenSSL 3 looks up the algorithm for each new hash object, but not for copies. That saves three quarters of the
    time, some 10 microseconds within a request.
    """
    key = (secret if len(secret) <= _BLOCK else sha256(secret).digest()).ljust(_BLOCK, b"\0")  # RFC 2104 section 2
    inner, outer = sha256(bytes([byte ^ 0x36 for byte in key])), sha256(bytes([byte ^ 0x5C for byte in key]))

    def mac(base: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(base)
        second.update(first.digest())
        return second.digest()

    return mac


def read_signature(inputs: Sequence[str], signatures: Sequence[str]) -> Signature:
    """Parse the only signature of a message (section 4).

    Args:
        inputs: the lines of ``Signature-Input``.
        signatures: the lines of ``Signature``.

    Raises:
        SignatureError: a field is missing or malformed, their labels differ, there are several signatures, or a
            component has parameters or is covered twice.
    """
    if not inputs or not signatures:
        raise SignatureError("a signature needs both Signature-Input and Signature (RFC 9421 section 4)")
    described = parse_dictionary("Signature-Input", ", ".join(inputs))
    made = parse_dictionary("Signature", ", ".join(signatures))
    if len(described) != 1 or described.keys() != made.keys():
        raise SignatureError("send one signature, under the same label in Signature-Input and in Signature")
    ((label, covered),) = described.items()
    mac = made[label]
    if not isinstance(covered, InnerList):
        raise SignatureError("Signature-Input must list the covered components in parentheses")
    if not isinstance(mac, Item) or not isinstance(mac.value, bytes) or mac.params:
        raise SignatureError("Signature must be base64 between colons")
    names = []
    for item in covered.items:
        # Compared by type, because ``SfToken`` is a subclass of str, and a token is not a valid component name.
        if type(item.value) is not str:
            raise SignatureError("covered components are named in double quotes")
        if item.params:
            raise SignatureError(f"parameters of a component are not taken here: {_shown(item.value)}")
        names.append(item.value)
    if len(set(names)) != len(names):
        raise SignatureError("a component is covered twice")
    return Signature(tuple(names), covered.params, serialise(covered), mac.value)


def _split(message: SignedMessage) -> tuple[str, str, str]:
    """Return ``@path``, ``@query`` (sections 2.2.6 and 2.2.7), and the part of ``@target-uri`` after the authority."""
    target = message.target
    if "#" in target:  # the part after it would be neither path nor query, and so not be signed
        raise SignatureError("a request target has no fragment")
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return path, f"?{query}", target
    if target == "*":
        return "/", "?", ""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise SignatureError("a request target of this form cannot be signed")
    if normalised(absolute["authority"], message.scheme) != message.authority:  # RFC 9112, 3.2.2: target before Host
        raise SignatureError("the request target and the Host header name different authorities")
    path, query = absolute["path"] or "/", absolute["query"]
    return path, f"?{query or ''}", path if query is None else f"{path}?{query}"


def _other(name: str, message: SignedMessage, rest: str) -> str:
    if name == "@scheme":
        return message.scheme
    if name == "@request-target":
        return message.target
    if name == "@target-uri":
        return f"{message.scheme}://{message.authority}{rest}"
    if name.startswith("@") or name != name.lower():
        raise SignatureError(f"a request has no component {_shown(name)}")
    return _field(name, message)


def _field(name: str, message: SignedMessage) -> str:
    lines = message.fields(name)
    if not lines:
        raise SignatureError(f"a covered header field is missing: {_shown(name)}")
    if len(lines) == 1:
        return lines[0].strip(" \t")
    return ", ".join([line.strip(" \t") for line in lines])  # section 2.1


def _shown(name: str) -> str:
    return ascii(name[:_SHOWN])
