"""PyTorch implementation of the decoder: model runner, paged attention, KV cache and sampling."""
