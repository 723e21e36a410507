"""Routers: which expert answers a query."""
