"""Comparison of finished runs: groups of equal settings, as tables in a terminal, in CSV files and on a page."""
