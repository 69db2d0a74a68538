from __future__ import annotations

from loadtests.load.machine import machine_facts


def test_the_machine_tells_what_decides_a_products_cost() -> None:
    """Cores, and instruction sets of the processor or that it has none of them."""
    facts = machine_facts()
    assert int(facts["cores"]) >= 1
    assert facts["instructions"]
