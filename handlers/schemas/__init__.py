"""Pydantic models of the operations' requests and responses, and the validation of payloads."""
