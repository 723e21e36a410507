"""Base models: loading, checks of their architecture, digests of their files, sharding over ranks."""
