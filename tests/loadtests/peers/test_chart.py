from __future__ import annotations

from xml.etree import ElementTree

import pytest

from loadtests.peers.chart import chart

SVG = "{http://www.w3.org/2000/svg}"


def _bars(picture: str) -> list[ElementTree.Element]:
    elements = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    return [bar for bar in elements if bar.get("height") not in ("12.0", "460")]  # legend, background


def test_the_chart_is_xml_with_a_bar_per_figure() -> None:
    """Heights are in proportion; what was not measured is a dash; names are escaped and in the legend."""
    figures: dict[str, dict[str, float | None]] = {
        "Warmstart": {"tokens_per_second@1": 120.0, "tokens_per_second@8": 480.0},
        "a <b> & c": {"tokens_per_second@1": 60.0, "tokens_per_second@8": None},
    }
    picture = chart(figures, (1, 8), "machine & more")
    heights = [float(bar.get("height", 0)) for bar in _bars(picture)]
    assert heights == pytest.approx([heights[1] * 2, heights[1], heights[1] * 8], rel=0.01)
    texts = [text.text for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert {"Warmstart", "a <b> & c", "machine & more", "1 client", "8 clients", "120", "60", "480", "-"} <= set(texts)


@pytest.mark.parametrize("highest", [None, 0.4, 1.0, 9.9, 64.0, 65.0, 999.0, 12_345.0])
def test_the_chart_has_room_for_every_figure(highest: float | None) -> None:
    """Bars stay within the picture, and lines stay few, whatever the greatest figure is."""
    picture = chart({"a": {"tokens_per_second@1": highest}}, (1,), "")
    for bar in _bars(picture):
        assert float(bar.get("y", 0)) >= 80
        assert 200 < float(bar.get("height", 0)) < 460
    lines = list(ElementTree.fromstring(picture).iter(f"{SVG}path"))
    assert 3 <= len(lines) <= 8
