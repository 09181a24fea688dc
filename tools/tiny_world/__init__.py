"""The little world of the embedded models: its families, its corpus, and how the models are trained on it."""
