"""Key-value caches, prefill and greedy decoding of batches."""
