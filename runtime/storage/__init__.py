"""Durable file replacement, SQLite files and the shared Redis client, for other packages."""
