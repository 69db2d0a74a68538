"""Makes ``docs/commands.md`` from the parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from handlers.cli.parser import build_parser
from loadtests.load import launch

_HEAD = """# Command line

Made from the parser of the command line by `.ci/reference`; `warmstart COMMAND --help` prints the same. In a checkout
the command is `.venv/bin/warmstart`. [Settings](settings.md) apply to each command as to the service. The exit status
is 0, 1 after an error, and 2 for a wrong option.
"""


def page() -> str:
    """Return the page."""
    return _HEAD + "".join(_sections(build_parser(lambda _: None, lambda _: None, launch.add), 2))


def _sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield a section for each command of a parser, and for their own commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, sub in action.choices.items():
                yield f"\n{'#' * level} {sub.prog}\n\n{sub.description or helps.get(name) or ''}\n"
                rows = [_row(sub, option) for option in sub._actions if not _hidden(option)]
                if rows:
                    yield "\n| argument | meaning | default |\n|---|---|---|\n" + "".join(rows)
                yield from _sections(sub, level + 1)


def _hidden(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = value if isinstance(value, str) else " ".join(value)
    takes_value = action.nargs != 0
    names = ", ".join(f"`{option}{f' {value}' if takes_value else ''}`" for option in action.option_strings)
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    if action.choices:
        text += f"{': ' if text else ''}{', '.join(f'`{choice}`' for choice in action.choices)}"
    default = action.default
    shown = "" if default in (None, False, argparse.SUPPRESS, []) else f"`{default}`"
    required = "required" if action.option_strings and action.required else shown
    return f"| {names or f'`{value}`'} | {text.replace('|', chr(92) + '|')} | {required} |\n"
