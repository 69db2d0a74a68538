"""The connection layer below the middlewares: request framing, connection limits, TLS and the PROXY protocol."""
