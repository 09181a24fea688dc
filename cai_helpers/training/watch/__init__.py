"""While it runs: the history, alarms, checkpoints, and copies of them elsewhere."""
