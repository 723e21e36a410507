"""What a user sees of finished runs: reports, comparisons, tables and figures, made from files alone; without torch."""
