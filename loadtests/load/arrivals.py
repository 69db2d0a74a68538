"""When requests are sent: the kinds of arrivals that a scenario can name, and the stages that they become.

A stage is either a number of users who each wait for their answer (closed loop), or a list of moments that do not
depend on the server (open loop). All functions are pure; the same seed gives the same moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loadtests.load.trace import TraceRow, read_trace

Process = Literal["poisson", "constant"]
Rate = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]
Users = Annotated[int, Field(ge=1, le=100_000)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Segment(BaseModel):
    """A part of a stage for which figures are reported: its length, and its rate, which changes linearly."""

    name: str
    seconds: float
    rate: float | None = None
    """Requests per second at its start; None in a closed loop."""
    rate_to: float | None = None
    """Requests per second at its end; None: as at its start."""

    @property
    def mean_rate(self) -> float | None:
        """Mean requests per second; None in a closed loop."""
        return None if self.rate is None else (self.rate + (self.rate if self.rate_to is None else self.rate_to)) / 2


class LoadStage(BaseModel):
    """A part of a run that starts on an idle server and ends when the last answer has come."""

    name: str
    warmup: float = 0.0
    """Seconds at the start that are not measured, under the load of the first segment."""
    segments: list[Segment]
    users: int | None = None
    """Users of a closed loop; None: open loop."""
    process: Process = "poisson"
    trace: list[TraceRow] | None = None
    """The moments and lengths of a replayed trace."""

    @property
    def seconds(self) -> float:
        """Seconds in which requests are sent, with the warm-up."""
        return self.warmup + sum(segment.seconds for segment in self.segments)

    def windows(self) -> Iterator[tuple[Segment, float, float]]:
        """Yield each segment with its start and its end, in seconds from the stage's start."""
        start = self.warmup
        for segment in self.segments:
            yield segment, start, start + segment.seconds
            start += segment.seconds

    def moments(self, random: Random) -> list[float]:
        """Return the seconds from the stage's start at which requests are sent in an open loop."""
        if self.trace is not None:
            return [row.at for row in self.trace]
        first = self.segments[0].rate or 0.0
        pieces = [(self.warmup, first, first)] if self.warmup else []
        for segment in self.segments:
            rate = segment.rate or 0.0
            pieces.append((segment.seconds, rate, rate if segment.rate_to is None else segment.rate_to))
        return list(_moments(pieces, _events(self.process, random)))


class ClosedLoop(BaseModel):
    """Users who send their next request when they have the answer; a stage per number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    type: Literal["closed"]
    users: Annotated[list[Users], BeforeValidator(_listed), Field(min_length=1)]
    seconds: Seconds

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stages."""
        return [
            LoadStage(
                name=f"{users} user{'s' * (users > 1)}",
                warmup=warmup,
                users=users,
                segments=[Segment(name=f"{users} user{'s' * (users > 1)}", seconds=self.seconds)],
            )
            for users in self.users
        ]


class OpenLoop(BaseModel):
    """Requests at a rate, with exponential (``poisson``) or equal (``constant``) distances; a stage per rate."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    type: Process
    rate: Annotated[list[Rate], BeforeValidator(_listed), Field(min_length=1)]
    seconds: Seconds

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stages."""
        return [rate_stage(rate, self.seconds, warmup, self.type) for rate in self.rate]


class _Changing(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    process: Process = "poisson"

    def _stage(self, name: str, segments: list[Segment], warmup: float) -> list[LoadStage]:
        return [LoadStage(name=name, warmup=warmup, segments=segments, process=self.process)]


class Ramp(_Changing):
    """A rate that changes linearly, reported in equal parts."""

    type: Literal["ramp"]
    rate_from: Rate
    rate_to: Rate
    seconds: Seconds
    parts: int = Field(5, ge=1, le=100)

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stage."""
        edges = [self.rate_from + (self.rate_to - self.rate_from) * part / self.parts for part in range(self.parts + 1)]
        segments = [
            Segment(name=f"{low:g} to {high:g}/s", seconds=self.seconds / self.parts, rate=low, rate_to=high)
            for low, high in pairwise(edges)
        ]
        return self._stage("ramp", segments, warmup)


class Steps(_Changing):
    """A rate that rises or falls by a step each time, without a pause between."""

    type: Literal["step"]
    rate_from: Rate
    rate_to: Rate
    step: Rate
    seconds: Seconds
    """Of each step."""

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stage."""
        count = math.floor(abs(self.rate_to - self.rate_from) / self.step + 1e-9) + 1
        sign = 1 if self.rate_to >= self.rate_from else -1
        rates = [self.rate_from + sign * self.step * number for number in range(count)]
        segments = [Segment(name=f"{rate:g}/s", seconds=self.seconds, rate=rate) for rate in rates]
        return self._stage("steps", segments, warmup)


class Spike(_Changing):
    """A rate, a short peak, and the rate again: what the peak does, and how long it is felt."""

    type: Literal["spike"]
    rate: Rate
    peak: Rate
    seconds_before: Seconds
    seconds_peak: Seconds
    seconds_after: Seconds

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stage."""
        segments = [
            Segment(name="before", seconds=self.seconds_before, rate=self.rate),
            Segment(name="peak", seconds=self.seconds_peak, rate=self.peak),
            Segment(name="after", seconds=self.seconds_after, rate=self.rate),
        ]
        return self._stage("spike", segments, warmup)


class Soak(_Changing):
    """One rate for a long time, reported in equal parts, so that drift and growth can be seen."""

    type: Literal["soak"]
    rate: Rate
    seconds: Seconds
    parts: int = Field(10, ge=2, le=1_000)

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stage."""
        length = self.seconds / self.parts
        segments = [Segment(name=f"part {part + 1}", seconds=length, rate=self.rate) for part in range(self.parts)]
        return self._stage("soak", segments, warmup)


class Sweep(_Changing):
    """Rising rates until the server is saturated, then rates between the last good and the first bad one."""

    type: Literal["sweep"]
    rate: Rate = 1.0
    """The first one."""
    factor: float = Field(1.5, gt=1, le=100)
    """From one rate to the next while the server keeps up."""
    refinements: int = Field(2, ge=0, le=10)
    """Rates between; each halves the distance."""
    max_stages: int = Field(16, ge=1, le=100)
    seconds: Seconds

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the first stage; ``loadtests.load.saturation`` chooses the others."""
        return [self.stage(self.rate, warmup)]

    def stage(self, rate: float, warmup: float) -> LoadStage:
        """Return the stage of a rate."""
        return rate_stage(rate, self.seconds, warmup, self.process)


class TraceReplay(BaseModel):
    """A recorded trace: its moments, and its lengths of prompts and answers; see ``loadtests.load.trace``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    type: Literal["trace"]
    file: str
    """Relative to the scenario's folder."""
    speed: float = Field(1.0, gt=0, le=1_000)
    """How many times faster it is replayed."""
    seconds: Seconds | None = None
    """Only so much of it, after ``speed``."""
    rows: list[TraceRow] = Field(default_factory=list, exclude=True)

    def read(self, folder: str) -> None:
        """Read the file.

        Raises:
            ValueError: it is missing, empty or wrong.
        """
        self.rows = read_trace(folder, self.file, self.speed, self.seconds)

    def stages(self, warmup: float) -> list[LoadStage]:
        """Return the stage; the warm-up is its first seconds."""
        length = max(self.rows[-1].at - warmup, 0.0) + 1e-3
        rate = sum(row.at >= warmup for row in self.rows) / length
        return [
            LoadStage(
                name="trace",
                warmup=warmup,
                segments=[Segment(name="trace", seconds=length, rate=rate)],
                trace=self.rows,
            )
        ]

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.file:
            raise ValueError("file: name the trace's file")
        return self


Arrivals = Annotated[
    ClosedLoop | OpenLoop | Ramp | Steps | Spike | Soak | Sweep | TraceReplay, Field(discriminator="type")
]


def rate_stage(rate: float, seconds: float, warmup: float, process: Process) -> LoadStage:
    """Return a stage with one rate."""
    name = f"{rate:.6g}/s"
    return LoadStage(
        name=name, warmup=warmup, segments=[Segment(name=name, seconds=seconds, rate=rate)], process=process
    )


def _events(process: Process, random: Random) -> Iterator[float]:
    """Yield the moments of a process of rate 1."""
    moment = 0.0
    while True:
        if process == "poisson":
            moment += random.expovariate(1.0)
        yield moment
        if process == "constant":
            moment += 1.0


def _moments(pieces: list[tuple[float, float, float]], events: Iterator[float]) -> Iterator[float]:
    """Yield a process of rate 1 with its time changed, so that its rate is that of the pieces.

    The k-th request is sent when the integral of the rate reaches the k-th event (Çinlar's inversion method, as for
    any inhomogeneous Poisson process).

    Args:
        pieces: (seconds, rate at the start, rate at the end), the rate changing linearly.
        events: the moments of the process of rate 1.
    """
    event, start, reached = next(events), 0.0, 0.0
    for seconds, low, high in pieces:
        area = seconds * (low + high) / 2
        while event < reached + area:
            wanted, slope = event - reached, (high - low) / seconds
            # The root of low*t + slope*t^2/2 = wanted, in the form that is exact for a slope of 0.
            offset = 2 * wanted / (low + math.sqrt(max(low * low + 2 * slope * wanted, 0.0))) if wanted else 0.0
            yield start + min(offset, seconds)
            event = next(events)
        start, reached = start + seconds, reached + area
