"""Loads several models on demand, leases them to requests, and evicts idle ones to stay within a memory budget."""
