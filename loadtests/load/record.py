"""What is kept of each request."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

OK = "ok"
HUNG_UP = "hung up"


class LoadRecord(NamedTuple):
    """One request. All times are seconds from the stage's start."""

    work: str
    """The name of its kind of work."""
    due: float
    """When it had to be sent; in a closed loop, and for a later turn of a chat, when it was."""
    sent: float
    ended: float
    times: array[float]
    """When each piece of its text came."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = OK
    """``ok``, ``hung up`` (by the client, as planned), or the kind of its error."""
    detail: str = ""
    """The error's message."""
    scheduled: bool = True
    """Whether ``due`` is from a schedule."""

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.outcome not in (OK, HUNG_UP)

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was due to the first text; None if there was none."""
        return self.times[0] - self.due if self.times else None

    @property
    def e2e(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due

    @property
    def tpot(self) -> float | None:
        """Mean seconds between tokens after the first; None if there was no second."""
        if len(self.times) < 2 or self.completion_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) / (self.completion_tokens - 1)

    def gaps(self) -> list[float]:
        """Return the seconds between its pieces of text."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    def tokens_between(self, start: float, end: float) -> float:
        """Return its tokens that came in ``[start, end)``, assuming that all pieces of text hold equally many."""
        times = self.times or (self.ended,)
        return self.completion_tokens * sum(start <= moment < end for moment in times) / len(times)

    def packed(self) -> list[Any]:
        """Return it as a list that msgpack can carry."""
        return [self.times.tobytes() if field is self.times else field for field in self]


def unpacked(fields: list[Any]) -> LoadRecord:
    """Return a record from ``LoadRecord.packed``."""
    times = array("d")
    times.frombytes(fields[4])
    return LoadRecord._make([times if field is fields[4] else field for field in fields])
