"""The loop over tasks, the ledger that makes it safe to kill, and the use of what it made."""
