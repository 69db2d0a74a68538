"""The same load on Warmstart and on other servers, in turn: see README.md. Standard library only."""
