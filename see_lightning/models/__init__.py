"""The base model, and greedy decoding."""
