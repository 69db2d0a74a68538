"""A scenario: arrivals, work, service level objective and limits, read from a TOML file."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtests.load.arrivals import Arrivals, Sweep, TraceReplay
from loadtests.load.figure_names import FIGURES, SWEEP_FIGURES
from loadtests.load.work import UNIQUE, WorkKind


class ScenarioError(Exception):
    """A scenario cannot be used; the message names file, field and reason."""


class Objective(BaseModel):
    """A service level objective: what each request must reach, and how many of them must."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    ttft_ms: float | None = Field(200.0, gt=0)
    """Milliseconds to the first token."""
    itl_ms: float | None = Field(50.0, gt=0)
    """Mean milliseconds between a request's tokens."""
    e2e_ms: float | None = Field(None, gt=0)
    """Milliseconds to the end of the answer."""
    percent: float = Field(99.0, gt=0, le=100)
    """How many of the requests must reach them all."""


class Scenario(BaseModel):
    """All that determines a run but the server."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=80)
    description: str = Field("", max_length=1_000)
    model: str | None = None
    """The model to name in requests; None for the server's default."""
    seed: int = 0
    """Of arrivals, kinds, lengths and words. The first words of a prompt are different in every run all the same."""
    repeat_prompts: int = Field(0, ge=0)
    """Use only so many different prompts, the same in every run, so that caches help; 0: no prompt comes twice."""
    repetitions: int = Field(1, ge=1, le=100)
    """How often each stage is run; figures are means with 95 % confidence intervals."""
    warmup_seconds: float = Field(5.0, ge=0, le=3600)
    """At the start of each stage, under load and not measured."""
    drain_seconds: float = Field(120.0, gt=0, le=3600)
    """How long the last answers of a stage are waited for; a request that has none then has failed."""
    timeout_seconds: float = Field(600.0, gt=0, le=24 * 3600)
    """Of one request."""
    max_in_flight: int = Field(2_000, ge=1, le=60_000)
    """Requests of an open loop at the same time, of all workers; more are sent late, and the report says so."""
    arrivals: Arrivals
    work: list[WorkKind] = Field(min_length=1)
    slo: Objective = Objective()
    limits: dict[str, float] = Field(default_factory=dict)
    """The worst value of a figure with which the run passes."""
    compare: dict[str, float] = Field(default_factory=dict)
    """The worst ratio of a figure to that of an earlier report with which a comparison passes."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [work.name for work in self.work]
        if len(set(names)) < len(names):
            raise ValueError("work: two kinds have the same name; give them names")
        repeated = [work.name for work in self.work if work.prompt and UNIQUE not in work.prompt]
        if repeated and not self.repeat_prompts:
            raise ValueError(f"{repeated[0]}: prompt: without {UNIQUE} in it the scenario needs repeat_prompts")
        known = {**FIGURES, **SWEEP_FIGURES}
        for section in ("limits", "compare"):
            for figure, value in getattr(self, section).items():
                if figure not in known:
                    raise ValueError(f"{section}.{figure}: there is no such figure; there are {', '.join(known)}")
                if value < 0 or (section == "compare" and value == 0):
                    raise ValueError(f"{section}.{figure}: {value:g} is too small")
        if isinstance(self.arrivals, Sweep):
            if wrong := sorted(set(self.limits) - set(SWEEP_FIGURES)):
                raise ValueError(
                    f"limits.{wrong[0]}: a sweep overloads the server; only {', '.join(SWEEP_FIGURES)} can be limited"
                )
        elif wrong := sorted((set(self.limits) | set(self.compare)) & set(SWEEP_FIGURES)):
            raise ValueError(f"{wrong[0]}: only a sweep has this figure")
        return self


def ready_scenarios() -> dict[str, Path]:
    """Return the scenarios that come with the generator, by name."""
    folder = Path(str(resources.files("loadtests.load"))) / "scenarios"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_scenario(name: str) -> Scenario:
    """Read a scenario.

    Args:
        name: a file, or the name of a ready scenario.

    Raises:
        ScenarioError: it does not exist or is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml" and name in ready_scenarios():
        path = ready_scenarios()[name]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        ready = ", ".join(ready_scenarios())
        raise ScenarioError(f"{name}: {error.strerror}; ready scenarios: {ready}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{name}: not TOML: {error}") from None
    return parse_scenario(content, str(path.parent), name)


def parse_scenario(content: dict[str, Any], folder: str = ".", name: str = "scenario") -> Scenario:
    """Check a scenario's fields, and read its trace.

    Args:
        content: the fields.
        folder: the folder that a trace's file is relative to.
        name: the name for errors.

    Raises:
        ScenarioError: a field is wrong.
    """
    try:
        scenario = Scenario.model_validate(content)
        if isinstance(scenario.arrivals, TraceReplay):
            scenario.arrivals.read(folder)
    except ValidationError as error:
        found = "; ".join(f"{_place(item['loc'])}: {item['msg']}" for item in error.errors()[:5])
        raise ScenarioError(f"{name}: {found}") from None
    except ValueError as error:
        raise ScenarioError(f"{name}: {error}") from None
    return scenario


def _place(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in parts) or "scenario"
