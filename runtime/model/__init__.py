"""What a model is, without torch: configuration, weights, tokenizer and chat template."""
