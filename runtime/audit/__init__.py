"""The audit log: an append-only file of JSON lines, chained by MACs (``chain``), written (``log``) and checked
(``verify``)."""
