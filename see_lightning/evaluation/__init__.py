"""Scores, the results matrix, continual metrics, routing, and the report."""
