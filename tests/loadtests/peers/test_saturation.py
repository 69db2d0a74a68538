from __future__ import annotations

from xml.etree import ElementTree

from loadtests.load.line_chart import svg_file
from loadtests.peers.saturation import curve, table


def _segment(rate: float, *tokens: float) -> dict[str, object]:
    return {"rate": rate, "repetitions": [{"output_throughput": value, "request_goodput": 1.0} for value in tokens]}


REPORTS = {
    "warmstart": {
        "sweep": {"saturation_rate": 8.0, "goodput_rate": 6.0},
        "segments": [_segment(4, 90, 110), _segment(8, 200)],
    },
    "llama-q8_0": {"sweep": {"saturation_rate": 2.0, "goodput_rate": None}, "segments": [_segment(2, 50)]},
}


def test_servers_have_a_row_each() -> None:
    """What was not reached is a dash."""
    assert table(REPORTS).splitlines()[2:] == ["| warmstart | 8 | 6 | 200 | 1 |", "| llama-q8_0 | 2 | - | 50 | 1 |"]


def test_servers_have_a_line_each() -> None:
    """Repetitions are means; the file is a picture of its own."""
    found = ElementTree.fromstring(svg_file(curve(REPORTS, "output_throughput", "t", "1/s")))
    titles = [title.text for title in found.iter("{http://www.w3.org/2000/svg}title")]
    assert {"warmstart: 100 at 4", "warmstart: 200 at 8", "llama-q8_0: 50 at 2"} <= set(titles)
