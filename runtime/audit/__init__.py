"""The audit log: an append-only file of JSON lines, chained by MACs (``chain``), written (``log``) and checked
(``verify``)."""

LEAST_SECRET = 32  # characters of AUDIT_KEY: as many bytes as the hash is wide
