"""What is counted of a text or of counts: refusals, degeneration, topic fit, near-duplicates, intervals."""
