"""Parts of a model that need no torch: source, decoder configuration, packed weights, tokenizer and chat template."""
