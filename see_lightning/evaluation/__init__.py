"""Scores, the results matrix, continual metrics and routing."""
