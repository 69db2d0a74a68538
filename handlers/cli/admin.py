"""The commands ``warmstart pull``, ``bench`` and ``config``: download a model, measure it, print the settings."""

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
    """Run ``pull``: download a model and convert it if necessary."""
    settings = Settings.load()
    spec = parse_model_name(options.name, adapters=settings.adapters_dir)
    setup_logging(settings.log_format, settings.log_level)
    from runtime.loading.load_engine import pull  # imports numpy and tokenizers, which is slow

    pull(spec, settings)


def run_bench(options: argparse.Namespace) -> None:
    """Run ``bench``: measure a model on this machine and print a table or JSON."""
    settings = settings_of(options)
    spec = parse_model_name(settings.model_name, adapters=settings.adapters_dir)
    setup_logging(settings.log_format, "WARNING")
    from runtime.bench import bench, table  # imports numpy and tokenizers, which is slow

    try:
        text = Path(options.perplexity).read_text("utf-8") if options.perplexity else None
    except UnicodeDecodeError:
        raise InvalidRequest(f"--perplexity: {options.perplexity} is not UTF-8") from None
    report = bench(spec, settings, text=text)
    print(json.dumps(report) if options.json else table(report))


def run_config(options: argparse.Namespace) -> None:
    """Run ``config``: print every setting with its value, default and description."""
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
