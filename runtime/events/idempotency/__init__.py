"""Idempotency records of processed events, so that each event is processed once."""
