"""Events from Redis Streams."""
