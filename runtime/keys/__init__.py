"""API and signing keys: their records (``records``), the file of records (``file``), and lookup (``ring``)."""
