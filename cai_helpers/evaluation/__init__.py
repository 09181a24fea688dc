"""Two models side by side on held-out prompts."""
