"""Runs the same load on Warmstart and on other servers and compares them; see README.md. Standard library only."""
