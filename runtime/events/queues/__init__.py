"""Message brokers as sources of events: the adapter protocols, and an adapter for each broker."""
