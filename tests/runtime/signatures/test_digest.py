"""runtime.signatures.digest: RFC 9530's examples, and what does not belong to a body."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from runtime.signatures import SignatureError
from runtime.signatures.digest import content_digest, verify_digest

# RFC 9530 appendix B.1 and section 2.
BODY = b'{"hello": "world"}\n'
SHA256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
SHA512 = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:"
MD5 = f"md5=:{b64encode(hashlib.md5(b'x').digest()).decode()}:"
WRONG = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


def test_written() -> None:
    """RFC 9530's own value, and that of nothing."""
    assert content_digest(BODY) == SHA256
    assert content_digest(b"") == WRONG


@pytest.mark.parametrize(
    "value",
    [SHA256, SHA512, f"{SHA256}, {SHA512}", f"{SHA512},{SHA256}", f"{MD5}, {SHA256}", f" {SHA256};q=1", f"{SHA256} "],
)
def test_right(value: str) -> None:
    """All that are known belong to the body; others may be anything (section 2)."""
    verify_digest(value, BODY)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (WRONG, "another sha-256"),
        (f"{SHA512}, {WRONG}", "another sha-256"),
        (f"{SHA256}, sha-512=:AAAA:", "another sha-512"),
        (SHA256.replace("RK", "rk"), "another sha-256"),
        ("sha-256=::", "another sha-256"),
        (MD5, "needs sha-256 or sha-512"),
        ("", "needs sha-256 or sha-512"),
        (f"{WRONG}, {SHA256}", "twice"),
        (f"{SHA256}, {SHA256}", "twice"),
        ("sha-256=abc", "between colons"),
        ("sha-256", "between colons"),
        ("sha-256=(:RK/0:)", "between colons"),
        (SHA256.upper(), "cannot be read"),
        ("sha-256=:RK/0", "cannot be read"),
        ("sha-256=:é:", "cannot be read"),
        (f"x=:{'A' * 9000}:", "longer than"),
    ],
)
def test_wrong(value: str, said: str) -> None:
    """One that is known and differs is enough; so is none that is known, or a field that is none."""
    with pytest.raises(SignatureError, match=said):
        verify_digest(value, BODY)
