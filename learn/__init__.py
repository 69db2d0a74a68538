"""The course's exercises: ``python -m learn`` lists them, ``python -m learn NAME`` judges one. See ``docs/learn/``."""
