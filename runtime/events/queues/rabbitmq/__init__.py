"""Events from RabbitMQ."""
