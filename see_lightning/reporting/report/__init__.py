"""The report of one run: sections, and how a terminal and a page show them."""
