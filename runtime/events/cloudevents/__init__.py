"""CloudEvents 1.0: parsing, validation and the HTTP binding."""
