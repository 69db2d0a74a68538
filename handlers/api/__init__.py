"""The HTTP side of the operations: routes, payload parsing and the OpenAPI document."""
