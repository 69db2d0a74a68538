"""runtime.signatures.verifier: what a signature must cover, when it is good, and that tampering shows."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.signatures import SignatureError
from runtime.signatures.digest import content_digest
from runtime.signatures.message import SignedMessage
from runtime.signatures.nonces import MemoryNonces
from runtime.signatures.structured_fields import SfToken
from runtime.signatures.verifier import COVERED, Claim, Verifier, _match_usual, read_claim
from runtime.types import Caller
from tests.support.clock import Clock
from tests.support.signed import KEY_ID, NOW, SECRET, message, params, with_signature
from tests.support.soak import soak

CALLER = Caller(KEY_ID, "signer", frozenset("*"))
WINDOW = 300
BODY = b'{"prompt": "Hi"}'
DIGEST = {"Content-Digest": content_digest(BODY)}
WITH_BODY = (*COVERED, "content-digest")


def _sent(body: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return body

    return read


def _verifier(now: float = NOW) -> Verifier:
    keys = {KEY_ID: (CALLER, SECRET), "k_other": (CALLER, b"another secret")}
    return Verifier(keys.get, MemoryNonces(clock=Clock(NOW - WINDOW)), WINDOW, Clock(now))


def _signed(
    components: tuple[str, ...] = COVERED,
    text_params: dict[str, Any] | None = None,
    secret: bytes = SECRET,
    **request: Any,
) -> dict[str, str]:
    fields = request.pop("fields", {})
    signature = with_signature(message(**request, fields=fields), components, text_params or params(), secret)
    return {**fields, **signature}


async def test_good() -> None:
    """A request signed as it must be, with and without a body: who it is."""
    assert await _verifier().verify(message(fields=_signed()), None) == CALLER
    fields = _signed(WITH_BODY, fields=DIGEST, method="POST", target="/generate?a=1")
    assert await _verifier().verify(message("POST", "/generate?a=1", fields=fields), _sent(BODY)) == CALLER


@pytest.mark.parametrize(
    "components",
    [
        tuple(reversed(COVERED)),
        (*COVERED, "@scheme", "@target-uri", "@request-target"),
        (*COVERED, "content-type", "x-tenant", "host"),
        (*COVERED, "content-digest"),
    ],
)
async def test_covers_more(components: tuple[str, ...]) -> None:
    """Any order, and anything besides; an empty body may have a digest."""
    fields = {"Content-Type": "text/x", "X-Tenant": "a", "Host": "example.com", "Content-Digest": content_digest(b"")}
    if "content-digest" not in components:
        del fields["Content-Digest"]
    signed = _signed(components, fields=fields)
    assert await _verifier().verify(message(fields=signed), None) == CALLER


@pytest.mark.parametrize("missing", WITH_BODY)
async def test_covers_less(missing: str) -> None:
    """Each component that must be covered is missed by name."""
    components = tuple(name for name in WITH_BODY if name != missing)
    with pytest.raises(SignatureError, match=f"must cover {missing} too"):
        await _verifier().verify(message(fields=_signed(components, fields=DIGEST)), _sent(BODY))


async def test_a_body_needs_a_digest() -> None:
    """A body without any digest, and a digest without a body that is not covered, are refused."""
    with pytest.raises(SignatureError, match="must cover content-digest too"):
        await _verifier().verify(message(fields=_signed()), _sent(BODY))
    with pytest.raises(SignatureError, match="must cover content-digest too"):
        await _verifier().verify(message(fields=_signed(fields=DIGEST)), None)


FIELDS = DIGEST | {"X-Tenant": "a"}


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "PUT"},
        {"method": "post"},
        {"target": "/generate"},
        {"target": "/generate?a=2"},
        {"target": "/generate?a=1&a=1"},
        {"target": "/Generate?a=1"},
        {"target": "/generat%65?a=1"},
        {"target": "//generate?a=1"},
        {"target": "/generate/?a=1"},
        {"target": "http://example.com/generate?a=1&"},
        {"authority": "example.org"},
        {"authority": "example.com:81"},
        {"fields": {"X-Tenant": "b"}},
        {"fields": {"X-Tenant": "a "}, "same": True},
        {"fields": {"Content-Digest": content_digest(b"x")}},
    ],
)
async def test_tampered(changed: dict[str, Any]) -> None:
    """Whatever covered part is changed, the signature is none of the request; blanks around a value are no change."""
    same = changed.pop("same", False)
    original: dict[str, Any] = {"method": "POST", "target": "/generate?a=1", "authority": "example.com"}
    fields = _signed((*WITH_BODY, "x-tenant"), fields=FIELDS, **original) | changed.pop("fields", {})
    tampered = message(**original | changed, fields=fields)
    if same:
        assert await _verifier().verify(tampered, _sent(BODY)) == CALLER
        return
    with pytest.raises(SignatureError, match="not one of this request"):
        await _verifier().verify(tampered, _sent(BODY))


async def test_another_body() -> None:
    """A body that is not the one digested; also where one digest is right and another is not."""
    fields = _signed(WITH_BODY, fields=DIGEST)
    for body in (BODY + b" ", b"", BODY.lower()):
        with pytest.raises(SignatureError, match="another sha-256"):
            await _verifier().verify(message(fields=fields), _sent(body))


@pytest.mark.parametrize("name", ["created", "expires", "nonce", "keyid", "tag"])
async def test_tampered_parameters(name: str) -> None:
    """Parameters are signed, too."""
    fields = _signed(text_params=params(created=NOW - 1))
    other = {"created": NOW, "expires": NOW + 61, "nonce": "f" * 16, "keyid": "k_other", "tag": "other"}[name]
    text = f'"{other}"' if isinstance(other, str) else str(other)
    old = params(created=NOW - 1)[name]
    old_text = f'"{old}"' if isinstance(old, str) else str(old)
    fields["Signature-Input"] = fields["Signature-Input"].replace(f"{name}={old_text}", f"{name}={text}")
    with pytest.raises(SignatureError, match=r"not one of this request|tag must be"):
        await _verifier().verify(message(fields=fields), None)


async def test_tampered_signature() -> None:
    """Any other bytes are no signature, however many of them are right."""
    fields = _signed()
    first = fields["Signature"][5]
    for changed in (
        fields["Signature"].replace(f"=:{first}", f"=:{'A' if first != 'A' else 'B'}", 1),
        "sig=::",
        "sig=:AAAA:",
        "sig=:" + "A" * 88 + ":",
    ):
        with pytest.raises(SignatureError, match="not one of this request"):
            await _verifier().verify(message(fields=fields | {"Signature": changed}), None)


async def test_key_and_signature_are_told_alike() -> None:
    """Whether a key is there cannot be learnt from what is said to a wrong signature."""
    said = set()
    for text_params, secret in ((params(keyid="k_nobody"), SECRET), (params(), b"wrong"), (params(keyid=""), SECRET)):
        with pytest.raises(SignatureError) as caught:
            await _verifier().verify(message(fields=_signed(text_params=text_params, secret=secret)), None)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("created", "expires", "now", "said"),
    [
        (0, 60, 0, None),
        (0, 60, 59.9, None),
        (0, 60, 60, "expired"),
        (0, 60, 1000, "expired"),
        (0, 300, 299.9, None),
        (0, 300, 300, "expired"),
        (0, 301, 0, "more than 300 seconds"),
        (5, 60, 0, None),
        (6, 60, 0, "in the future"),
        (5, 305, 0, None),
        (5, 306, 0, "more than 300 seconds"),
        (0, 0, 0, "expired"),
        (0, -1, 0, "expired"),
        (5, 3, 0, None),
        (5, 0, 0, "expired"),
        (-NOW, 60, 0, "more than 300 seconds"),
        (0, 10**14, 0, "more than 300 seconds"),
    ],
)
async def test_window(created: int, expires: int, now: float, said: str | None) -> None:
    """From five seconds before it was made until it expires, which is a window later at most."""
    fields = _signed(text_params=params(created=NOW + created, expires=NOW + expires))
    if said is None:
        assert await _verifier(NOW + now).verify(message(fields=fields), None) == CALLER
        return
    with pytest.raises(SignatureError, match=said):
        await _verifier(NOW + now).verify(message(fields=fields), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({name: None}, f"{name} (is missing|must be)") for name in ("created", "expires", "nonce", "keyid", "tag")),
        ({"created": True}, "created is missing, or not an integer"),
        ({"created": str(NOW)}, "created is missing, or not an integer"),
        ({"expires": SfToken("never")}, "expires is missing, or not an integer"),
        ({"nonce": "x" * 15}, "nonce must be a string of 16 to 128"),
        ({"nonce": "x" * 129}, "nonce must be a string of 16 to 128"),
        ({"nonce": 123456789012345}, "nonce must be a string"),
        ({"nonce": SfToken("a" * 20)}, "nonce must be a string"),
        ({"nonce": b"a" * 20}, "nonce must be a string"),
        ({"keyid": SfToken(KEY_ID)}, "keyid is missing, or not a string"),
        ({"keyid": True}, "keyid is missing, or not a string"),
        ({"tag": "Warmstart"}, "tag must be"),
        ({"tag": SfToken("warmstart")}, "tag must be"),
        ({"alg": "ed25519"}, 'alg must be "hmac-sha256"'),
        ({"alg": SfToken("hmac-sha256")}, "alg must be"),
        ({"alg": True}, "alg must be"),
        ({"other": 1}, "no parameter 'other'"),
    ],
)
async def test_parameters(changes: dict[str, Any], said: str) -> None:
    """Each must be there, and of its type; what is not understood is not accepted."""
    with pytest.raises(SignatureError, match=said):
        await _verifier().verify(message(fields=_signed(text_params=params(**changes))), None)


@pytest.mark.parametrize("changes", [{"nonce": "x" * 16}, {"nonce": '"\\' * 64}, {"alg": "hmac-sha256"}])
async def test_parameters_within_limits(changes: dict[str, Any]) -> None:
    """The shortest and longest nonce, with any characters; the algorithm may be named."""
    assert await _verifier().verify(message(fields=_signed(text_params=params(**changes))), None) == CALLER


async def test_good_once() -> None:
    """The same request again is a replay; with another nonce it is not."""
    verifier = _verifier()
    fields = _signed()
    await verifier.verify(message(fields=fields), None)
    with pytest.raises(SignatureError, match="used before"):
        await verifier.verify(message(fields=fields), None)
    again = _signed(text_params=params(nonce="another" * 3))
    assert await verifier.verify(message(fields=again), None) == CALLER


Break = Callable[[dict[str, str]], tuple[SignedMessage, bytes]]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda fields: (message(fields=fields | {"Signature": "sig=:AAAA:"}), BODY), id="signature"),
        pytest.param(lambda fields: (message(fields=fields), b"another"), id="body"),
        pytest.param(lambda fields: (message(target="/x", fields=fields), BODY), id="target"),
    ],
)
async def test_a_nonce_is_used_by_good_signatures_only(broken: Break) -> None:
    """Nobody without the key can use up a nonce, nor fill the memory of them."""
    nonces = MemoryNonces(clock=Clock(NOW))
    verifier = Verifier({KEY_ID: (CALLER, SECRET)}.get, nonces, WINDOW, Clock(NOW))
    fields = _signed(WITH_BODY, fields=DIGEST)
    broken_message, body = broken(fields)
    with pytest.raises(SignatureError):
        await verifier.verify(broken_message, _sent(body))
    assert len(nonces) == 0
    assert await verifier.verify(message(fields=fields), _sent(BODY)) == CALLER
    assert len(nonces) == 1


async def test_nobody_unknown_is_waited_for() -> None:
    """The body is read once the signature is known to be good, and not before."""
    fields = _signed(WITH_BODY, fields=DIGEST)
    reads = 0

    async def read() -> bytes:
        nonlocal reads
        reads += 1
        return BODY

    for broken in (fields | {"Signature": "sig=:AAAA:"}, DIGEST, fields | {"Signature-Input": "sig=()"}):
        with pytest.raises(SignatureError):
            await _verifier().verify(message(fields=broken), read)
    assert reads == 0
    await _verifier().verify(message(fields=fields), read)
    assert reads == 1


MAC = b64encode(bytes(range(32))).decode()
PARAMETERS = (
    f";created={NOW}",
    f";expires={NOW + 60}",
    ';nonce="0123456789abcdef"',
    ';keyid="k_1"',
    ';tag="warmstart"',
    ';alg="hmac-sha256"',
)
OTHERS = (
    ";created=0",
    ";expires=007",
    ';nonce="short"',
    ';nonce="a;b=c 0123456789"',
    ';tag="x"',
    ";tag",
    ";created",
    ";x=1",
)


def _claimed(covered: str, parameters: list[str], label: str, with_body: bool) -> Claim | str:
    try:
        return read_claim([f"sig={covered}{''.join(parameters)}"], [f"{label}=:{MAC}:"], with_body)
    except SignatureError as error:
        return str(error)


@settings(max_examples=soak(2_000))
@given(
    st.sampled_from([COVERED, WITH_BODY, WITH_BODY[::-1], (*COVERED, "host"), COVERED[1:]]),
    st.permutations(PARAMETERS).flatmap(
        lambda usual: st.tuples(st.integers(4, 6), st.lists(st.sampled_from([*PARAMETERS, *OTHERS]), max_size=2)).map(
            lambda chosen: [*usual[: chosen[0]], *chosen[1]]
        )
    ),
    st.sampled_from(["sig", "sig", "sig", "other"]),
    st.booleans(),
)
def test_the_quick_way(components: tuple[str, ...], parameters: list[str], label: str, with_body: bool) -> None:
    """Signatures of the usual form, which are read without the parser, say the same as through it, or fail alike."""
    covered = "(" + " ".join(f'"{name}"' for name in components) + ")"
    slow = _claimed(covered.replace("(", "( "), parameters, label, with_body)  # a blank, and it is the parser's
    quick = _claimed(covered, parameters, label, with_body)
    if isinstance(slow, str) and "cannot be read" in slow:
        assert isinstance(quick, str)
    else:
        assert quick == slow


@pytest.mark.parametrize("components", [COVERED, WITH_BODY])
def test_the_quick_way_is_taken(components: tuple[str, ...]) -> None:
    """What clients send needs no parser, in whatever order they name the parameters; nothing else passes for it."""
    covered = "(" + " ".join(f'"{name}"' for name in components) + ")"
    for order in permutations(PARAMETERS):
        assert _match_usual(f"sig={covered}{''.join(order)}\nsig=:{MAC}:")
    assert not _match_usual(f"sig={covered}{''.join(PARAMETERS)}\nother=:{MAC}:")
    assert not _match_usual(f"sig={covered}{''.join(PARAMETERS)};x=1\nsig=:{MAC}:")
