"""The decoder's native half: a few C++ files, compiled at install time where a compiler is found."""
