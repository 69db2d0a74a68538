"""The ``warmstart`` command line: its parser and its commands."""
