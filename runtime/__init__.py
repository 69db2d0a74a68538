"""Everything a model needs. Importing this package loads nothing; torch is imported when a model is."""
