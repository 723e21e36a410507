"""KV caches, prefill and greedy decoding of batches."""
