"""An operation by its name, for events and local calls."""
