"""Base model, Stage 2 and Stage 3 side by side on held-out prompts: answers, figures, one rule for the verdict."""
