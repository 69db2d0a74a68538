"""What the operations on texts that are not continued share: vectors, relevance and classes from a model's encoder."""
