"""The NATS JetStream adapter."""
