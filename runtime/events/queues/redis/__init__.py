"""The Redis Streams adapter."""
