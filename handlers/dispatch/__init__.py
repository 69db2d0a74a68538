"""Calls operations by name, for events and local calls."""
