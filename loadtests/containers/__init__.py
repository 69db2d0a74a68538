"""Builds the images and the compose file's services on a Docker engine of its own, and tests them (Debian, root)."""
