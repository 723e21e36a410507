"""Finished runs side by side: groups of one setting, and how a terminal, spreadsheets and a page show them."""
