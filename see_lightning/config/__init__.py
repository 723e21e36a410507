"""Settings: what may be configured, how it is typed and checked, and which run it names. Nothing here imports torch."""
