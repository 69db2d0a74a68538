"""Support for cloud functions: the shared event loop and AWS Lambda's HTTP events."""
