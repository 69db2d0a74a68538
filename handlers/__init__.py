"""Operations as pure functions, and their entry points: HTTP routes, command line, events and cloud functions."""
