"""Warmstart on Ray Serve: ``serve run deploy.ray.application:build``. docs/growing.md has the settings and figures."""
