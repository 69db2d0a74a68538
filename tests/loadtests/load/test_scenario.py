from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from loadtests.load.arrivals import Arrivals, TraceReplay
from loadtests.load.scenario import Objective, Scenario, ScenarioError, load_scenario, parse_scenario, ready_scenarios
from loadtests.load.work import Kind, WorkKind
from tests.support.models import ROOT

SMALL: dict[str, Any] = {
    "name": "x",
    "arrivals": {"type": "poisson", "rate": 1, "seconds": 1},
    "work": [{"kind": "chat"}],
}
SWEEP: dict[str, Any] = SMALL | {"arrivals": {"type": "sweep", "seconds": 1}}


@pytest.mark.parametrize("name", ready_scenarios())
def test_the_ready_scenarios_are_right(name: str) -> None:
    """They are found by their names, and are the same after a way through JSON, as workers get them."""
    scenario = load_scenario(name)
    assert scenario.name == name
    assert Scenario.model_validate(scenario.model_dump(mode="json", exclude_unset=True)) == scenario


def test_a_scenario_has_the_usual_objective() -> None:
    """200 ms to the first token and 50 ms between tokens, for 99 % of the requests."""
    slo = parse_scenario(SMALL).slo
    assert (slo.ttft_ms, slo.itl_ms, slo.percent) == (200, 50, 99)


def test_a_trace_is_read_beside_the_scenario(tmp_path: Path) -> None:
    """Its path is relative to the scenario's folder."""
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,5\n1,6,6\n")
    (tmp_path / "s.toml").write_text(
        'name = "t"\n[arrivals]\ntype = "trace"\nfile = "t.csv"\n[[work]]\nkind = "chat"\n'
    )
    arrivals = load_scenario(str(tmp_path / "s.toml")).arrivals
    assert isinstance(arrivals, TraceReplay)
    assert [row.prompt_tokens for row in arrivals.rows] == [5, 6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrivals": {"type": "poisson", "rate": 0, "seconds": 1}}, r"arrivals\.poisson\.rate\.0"),
        ({"work": []}, "work"),
        ({"work": [{"kind": "chat"}, {"kind": "chat"}]}, "same name"),
        ({"work": [{"kind": "chat", "prompt": "Hello"}]}, "repeat_prompts"),
        ({"limits": {"p98_ttft_ms": 1}}, "p98_ttft_ms"),
        ({"limits": {"error_ratio": -1}}, "too small"),
        ({"limits": {"error_ratio": math.nan}}, "number"),
        ({"compare": {"p99_ttft_ms": 0}}, "too small"),
        ({"limits": {"saturation_rate": 1}}, "only a sweep"),
        (SWEEP | {"limits": {"p99_ttft_ms": 1}}, "overloads"),
        ({"speed": 1}, "speed"),
        ({"arrivals": {"type": "trace", "file": "nowhere.csv"}}, "nowhere.csv"),
    ],
)
def test_a_wrong_scenario_is_refused(fields: dict[str, Any], message: str) -> None:
    """The message names the scenario and the field."""
    with pytest.raises(ScenarioError, match=message) as error:
        parse_scenario(SMALL | fields, name="mine.toml")
    assert str(error.value).startswith("mine.toml: ")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    """With the scenarios that there are."""
    with pytest.raises(ScenarioError, match="chat, mixed, saturation"):
        load_scenario("nowhere.toml")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(ScenarioError, match="not TOML"):
        load_scenario(str(tmp_path / "x.toml"))


def test_the_page_describes_all_of_it() -> None:
    """Its example is a scenario; kinds, arrivals, their fields, ready scenarios and exit statuses are named."""
    page = (ROOT / "docs/load.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    parse_scenario(tomllib.loads(example))
    arrivals = [*get_args(get_args(Arrivals)[0])]
    fields = {name for model in (*arrivals, Scenario, WorkKind, Objective) for name in model.model_fields} - {
        "rows",
        "rate_from",
    }
    named = set(re.findall(r"`(\w+)`", page)) | set(re.findall(r"^(\w+) =", example, re.MULTILINE))
    named |= set(re.findall(r"`(\w+) = ", page))
    assert sorted({*fields, *get_args(Kind), *ready_scenarios()} - named) == []
    types = {kind for model in arrivals for kind in get_args(model.model_fields["type"].annotation)}
    assert types <= named
