"""Contexts of fake engines that take a fixed time for each token, for replicas of Ray (``context=``)."""

from __future__ import annotations

from handlers.context import Context
from tests.support.fakes import FakeEngine, fake_context


def tokens_of_50_ms() -> Context:
    """10 tokens, which take half a second."""
    return fake_context(FakeEngine(words=("word ",) * 10, pause=0.05))


def tokens_of_400_ms() -> Context:
    """10 tokens, which take four seconds."""
    return fake_context(FakeEngine(words=("word ",) * 10, pause=0.4))
