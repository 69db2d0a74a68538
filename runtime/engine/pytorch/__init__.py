"""The decoder and the reference engine on PyTorch."""
