"""The commands ``warmstart pull``, ``bench`` and ``config``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from handlers.cli.options import settings_of
from runtime.errors import InvalidRequest
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from runtime.telemetry.logging import setup_logging


def run_pull(options: argparse.Namespace) -> None:
    """``pull``: a model made ready."""
    settings = Settings.load()
    spec = parse_model_name(options.name, adapters=settings.adapters_dir)
    setup_logging(settings.log_format, settings.log_level)
    from runtime.loading.load_engine import pull  # numpy and the tokenizers come with it

    pull(spec, settings)


def run_bench(options: argparse.Namespace) -> None:
    """``bench``: what this machine does."""
    settings = settings_of(options)
    spec = parse_model_name(settings.model_name, adapters=settings.adapters_dir)
    setup_logging(settings.log_format, "WARNING")
    from runtime.bench import bench, table  # numpy and the tokenizers come with it

    try:
        text = Path(options.perplexity).read_text("utf-8") if options.perplexity else None
    except UnicodeDecodeError:
        raise InvalidRequest(f"--perplexity: {options.perplexity} is not UTF-8") from None
    found = bench(spec, settings, text=text)
    print(json.dumps(found) if options.json else table(found))


def run_config(options: argparse.Namespace) -> None:
    """``config``: every setting."""
    rows = Settings.load().describe()
    if options.markdown:
        print("| setting | default | meaning |\n|---|---|---|")
        for name, _, default, text in rows:
            print(f"| `{name}` | {f'`{default}`' if default else ''} | {text} |")
        return
    width = max(len(name) for name, *_ in rows)
    for name, value, default, text in rows:
        print(
            f"{name:<{width}} = {value}{'' if value == default else f'  (default {default})'}\n{'':<{width}}   {text}"
        )
