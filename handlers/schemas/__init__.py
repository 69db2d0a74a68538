"""The shapes of operations: what they take (requests), what they answer (responses), and how a payload is checked."""
