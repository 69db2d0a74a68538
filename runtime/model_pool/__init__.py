"""Several models in one memory budget."""
