"""How the service is deployed; ``deploy.ray`` is the only Python package in it."""
