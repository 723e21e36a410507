"""Tasks: their splits, rehearsal, reconstruction, and how they become batches."""
