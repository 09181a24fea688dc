"""What a run will take: memory by part and minutes by stage, counted before a weight is loaded."""
