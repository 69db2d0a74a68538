"""Compares two reports for the command line."""

from __future__ import annotations

import argparse
import sys

from loadtests.load import console
from loadtests.load.report import Report, read_report
from loadtests.load.scenario import ScenarioError, load_scenario
from loadtests.load.verdict import compare, missing


def compare_reports(options: argparse.Namespace) -> int:
    """Print the comparison that ``--compare`` asks for.

    Returns:
        0; 1 if a ratio is worse than its limit; 2 if a report or the scenario cannot be read.
    """
    try:
        before, after = (read_report(path) for path in options.compare)
        ratios = load_scenario(options.scenario).compare if options.scenario else after.scenario.get("compare", {})
    except ScenarioError as error:
        print(f"warmstart: {error}", file=sys.stderr)
        return 2
    return print_comparison(before, after, ratios)


def print_comparison(before: Report, after: Report, ratios: dict[str, float]) -> int:
    """Print a comparison.

    Returns:
        0; 1 if a ratio is worse than its limit, or a figure with a limit is not in both reports.
    """
    found = compare(before, after, ratios)
    print(console.comparison(found))
    absent = missing(found, ratios)
    for figure in absent:
        print(f"MISSING {figure}: the reports share no stage that has it")
    worse = [item for item in found if not item.passed]
    print("WORSE" if worse or absent else "PASSED")
    return int(bool(worse or absent))
