"""Is this data good? Pairs as a table, their statistics, a diagnosis in words, the gate of targets."""
