"""Inference engines that turn token ids into token streams. They implement ``handlers.protocols.Engine``."""
