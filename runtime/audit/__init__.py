"""The audit log: an append-only file of JSON lines, chained by MACs (``chain``), its writer (``log``) and its verifier
(``verify``)."""
