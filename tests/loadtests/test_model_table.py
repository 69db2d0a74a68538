from __future__ import annotations

from loadtests.model_table import EXAMPLES, PAGE, page
from loadtests.shapes import SHAPES
from runtime.model.families import FAMILIES, read_config


def test_the_page_is_what_the_code_says() -> None:
    """After a change of the families, ``python -m loadtests.model_table`` must be run again."""
    assert PAGE.read_text() == page()


def test_every_family_has_examples() -> None:
    """Neither a family without an example nor an example without a family."""
    assert EXAMPLES.keys() == FAMILIES.keys()


def test_the_measured_shapes_are_read() -> None:
    """A shape is the content of a ``config.json`` that the fast engine reads."""
    for shape in SHAPES.values():
        config, _ = read_config(shape)
        assert len(config.layers) == shape.get("num_hidden_layers", shape.get("n_layer"))
