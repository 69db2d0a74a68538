"""Load on a running service, and what it answers under it. Nothing of the service is imported here."""
