"""The page of a run's test queries and answers, with its data in files beside it."""
