"""Engines that turn token ids into token streams, behind the ``Engine`` protocol of ``handlers.context``."""
