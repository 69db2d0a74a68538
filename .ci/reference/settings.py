"""Makes ``docs/settings.md`` from the settings, as ``warmstart config --markdown`` does."""

from __future__ import annotations

import io
from argparse import Namespace
from contextlib import redirect_stdout

from handlers.cli.admin import run_config

_HEAD = """# Settings

Settings are environment variables. An invalid one prevents the start; the error names it. Blanks around a value are
ignored. Lists are separated by commas or blanks, or are JSON arrays if an entry contains some:
`MODELS='["/data/my models/a", "distilgpt2"]'`. `warmstart config` prints all settings with their current values, and
this table is `warmstart config --markdown`.

"""


def page() -> str:
    """Return the page."""
    table = io.StringIO()
    with redirect_stdout(table):
        run_config(Namespace(markdown=True))
    return _HEAD + table.getvalue()
