"""Lengths in tokens, or numbers of turns, drawn from a distribution."""

from __future__ import annotations

import math
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Lengths(BaseModel):
    """A distribution of positive integers.

    ``mean`` and ``deviation`` are those of the numbers themselves, for ``lognormal`` too. ``uniform`` takes ``min`` and
    ``max`` only; the others are cut at them.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    distribution: Literal["constant", "uniform", "normal", "lognormal", "exponential"]
    mean: float | None = Field(None, gt=0, le=10_000_000)
    deviation: float | None = Field(None, gt=0, le=10_000_000)
    min: int = Field(1, ge=1)
    max: int = Field(1_000_000, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted = {
            "constant": {"mean"},
            "uniform": {"min", "max"},
            "exponential": {"mean"},
        }.get(self.distribution, {"mean", "deviation"})
        given = {name for name in ("mean", "deviation") if getattr(self, name) is not None}
        if missing := sorted(wanted - given - (self.model_fields_set & {"min", "max"})):
            raise ValueError(f"distribution {self.distribution!r} needs {' and '.join(missing)}")
        if surplus := sorted(given - wanted):
            raise ValueError(f"distribution {self.distribution!r} takes no {' and no '.join(surplus)}")
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def draw(self, random: Random) -> int:
        """Return the next number of the distribution."""
        mean, deviation = self.mean or 0.0, self.deviation or 0.0
        match self.distribution:
            case "constant":
                value = mean
            case "uniform":
                return random.randint(self.min, self.max)
            case "normal":
                value = random.gauss(mean, deviation)
            case "exponential":
                value = random.expovariate(1 / mean)
            case "lognormal":
                variance = math.log1p((deviation / mean) ** 2)  # of the logarithm
                value = random.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
        return min(self.max, max(self.min, round(value)))


def _constant(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"distribution": "constant", "mean": value} if is_number else value


LengthsOrNumber = Annotated[Lengths, BeforeValidator(_constant)]
"""A distribution, or a number for a constant one."""
