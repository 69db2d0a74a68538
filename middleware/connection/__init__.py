"""What stands below HTTP semantics: framing, limits on connections, TLS and the PROXY protocol."""
