"""Event-driven work: one envelope and one outcome type for all sources, and an adapter per broker or platform."""
