"""handlers.generation.cache_control: what a request says about kept answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.generation.cache_control import CacheControl

CASES: list[tuple[str | None, CacheControl]] = [
    (None, CacheControl()),
    ("", CacheControl()),
    ("no-store", CacheControl(store=False)),
    ("NO-Store", CacheControl(store=False)),
    ("no-cache", CacheControl(reuse=False)),
    ("no-cache, no-store", CacheControl(store=False, reuse=False)),
    (",, no-cache ,\tno-store , ", CacheControl(store=False, reuse=False)),
    ("max-age=60", CacheControl(max_age=60)),
    ("Max-Age = 60", CacheControl(max_age=60)),
    ('max-age="60"', CacheControl(max_age=60)),
    ("max-age=0", CacheControl(max_age=0)),
    ("max-age=60, max-age=5", CacheControl(max_age=5)),
    ("max-age=" + "9" * 8000, CacheControl(max_age=math.inf)),
    ("max-age", CacheControl(max_age=0)),
    ("max-age=", CacheControl(max_age=0)),
    ("max-age=-1", CacheControl(max_age=0)),
    ("max-age=1.5", CacheControl(max_age=0)),
    ("max-age=1e3", CacheControl(max_age=0)),
    ("max-age=soon, no-cache", CacheControl(reuse=False, max_age=0)),
    ("max-age=\u0663", CacheControl(max_age=0)),
    ("only-if-cached, max-stale=5, no-transform, x=no-store, ünknown", CacheControl()),
    ('x="a, no-store", no-cache', CacheControl(reuse=False)),
    (r'x="a\", no-store", no-cache', CacheControl(reuse=False)),
    ('"no-store"', CacheControl()),
    ('no-cache, x="a, no-store', CacheControl(reuse=False)),
    ('max-age="10, no-store', CacheControl(max_age=0)),
    ('no-cache, "no-store\\', CacheControl(reuse=False)),
    ("not-no-store, no-storehouse", CacheControl()),
    ("no-store=1", CacheControl(store=False)),
]


@pytest.mark.parametrize(("text", "found"), CASES)
def test_directives(text: str | None, found: CacheControl) -> None:
    """Names have no case, quotes are read, what is unknown is nothing, and a wrong age is the safe one."""
    assert CacheControl.parse(text) == found


@given(st.text(alphabet='no-strecahmx=" ,\\1;\x00é', max_size=60))
def test_anything(text: str) -> None:
    """No text is an error, and no age is below nothing."""
    assert CacheControl.parse(text).max_age >= 0
