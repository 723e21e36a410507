"""Runs: the loop over tasks, the ledger that makes it safe to kill, results, and loading the experts of a run."""
