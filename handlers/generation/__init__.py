"""Code shared by the generating operations: checks, tokenization, response cache, usage and log-probabilities."""
