"""Operations as pure functions, and the ways in that call them: HTTP's routes, the command line, events, clouds."""
