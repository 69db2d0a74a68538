"""Sources of events that are message brokers."""
