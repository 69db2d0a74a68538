"""Work that comes as events: one envelope and one outcome for every source, and a small adapter for each."""
