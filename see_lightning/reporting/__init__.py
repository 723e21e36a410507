"""Reports, comparisons, tables and figures of finished runs, from their files alone and without torch."""
