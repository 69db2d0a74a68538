"""Where the exercises start; edit these files."""
