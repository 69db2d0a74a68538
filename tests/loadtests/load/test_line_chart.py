from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from loadtests.load.line_chart import HEIGHT, WIDTH, ChartSeries, line_chart, nice_step


@pytest.mark.parametrize("highest", [0.004, 1.0, 9.9, 12_345.0])
def test_a_chart_has_room_for_every_figure(highest: float) -> None:
    """Points and labels stay within the picture; a point that was not measured interrupts the line."""
    points = [(1.0, highest / 2), (2.0, None), (3.0, highest), (4.0, 0.0)]
    picture = line_chart("a <b>", "x", "y", [ChartSeries("one & two", points)], mark=highest * 2)
    found = ElementTree.fromstring(picture)
    for point in found.iter("circle"):
        assert 0 < float(point.get("cx", -1)) < WIDTH
        assert 0 < float(point.get("cy", -1)) < HEIGHT
    (line,) = (path.get("d", "") for path in found.iter("path") if "line" in path.get("class", ""))
    assert re.sub(r"[\d. ]+", "", line) == "MML"
    assert 'class="mark"' in picture
    assert "one & two" in [text.text for text in found.iter("text")]


def test_a_chart_of_nothing_is_a_chart() -> None:
    """Nothing was measured, or one point only."""
    for points in ([], [(1.0, None)], [(5.0, 3.0)]):
        ElementTree.fromstring(line_chart("t", "x", "y", [ChartSeries("s", points)]))


@pytest.mark.parametrize(("highest", "step"), [(1, 0.2), (6, 1), (7, 2), (64, 10), (99, 20), (0.03, 0.005)])
def test_grid_lines_are_at_round_numbers(highest: float, step: float) -> None:
    """Three to seven of them."""
    assert nice_step(highest) == pytest.approx(step)
