"""Load tests and benchmarks of a running service. Most import nothing of the service."""
