"""What HTTP needs of operations: routes, payloads and the OpenAPI document."""
