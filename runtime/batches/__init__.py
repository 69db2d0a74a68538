"""Stored files, and batches of requests that run behind interactive ones (OpenAI's Files and Batch APIs)."""
