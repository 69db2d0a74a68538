"""The course: its pages, and its exercises, which ``python -m docs.learn NAME`` judges."""
