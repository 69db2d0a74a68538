"""Exercise: an image for the small service. See docs/learn/containers.md."""

from __future__ import annotations

DOCKERFILE = """\
FROM python:latest
COPY . .
RUN pip install -r requirements.txt
ENV API_KEY=secret
CMD python server.py
"""
