"""A load generator on Locust for OpenAI-compatible servers; docs/load.md describes it.

Only ``controller``, ``generator`` and ``__main__`` need Locust and with it gevent; only ``events_bridge`` needs the
service.
"""
