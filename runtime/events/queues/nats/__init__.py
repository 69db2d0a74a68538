"""Events from NATS JetStream."""
