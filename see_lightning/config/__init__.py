"""Settings: schema, types, checks, and the key of a run. Nothing here imports torch."""
