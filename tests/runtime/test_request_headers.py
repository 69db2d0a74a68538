"""runtime.request_headers: the check of Content-Encoding and the hash of a caller's credentials."""

from __future__ import annotations

import pytest

from runtime.errors import UnsupportedMediaType
from runtime.request_headers import check_content_encoding, credentials_hash


@pytest.mark.parametrize("lines", [[], [""], ["identity"], ["Identity"], ["identity, identity"], ["", " identity\t"]])
def test_uncompressed_bodies_are_accepted(lines: list[str]) -> None:
    check_content_encoding(lines)


@pytest.mark.parametrize("lines", [["gzip"], ["identity, br"], ["identity", "deflate"], ["GZIP"], ["\x0bidentity"]])
def test_every_other_coding_is_refused(lines: list[str]) -> None:
    with pytest.raises(UnsupportedMediaType, match="without Content-Encoding"):
        check_content_encoding(lines)


def test_a_caller_without_credentials_has_no_id() -> None:
    assert credentials_hash([], []) == ""


def test_callers_are_told_apart_by_header_and_value() -> None:
    """The same credentials give the same id; the same text in another field, or in two lines, gives another."""
    sent: list[tuple[list[str], list[str]]] = [
        (["a"], []),
        ([], ["a"]),
        (["a", "b"], []),
        (["a, b"], []),
        (["a"], ["b"]),
        (["\udcff"], []),
    ]
    ids = [credentials_hash(*fields) for fields in sent]
    assert len(set(ids)) == len(sent)
    assert ids == [credentials_hash(*fields) for fields in sent]
    assert all(len(caller) == 64 for caller in ids)
