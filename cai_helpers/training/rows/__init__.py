"""What is trained on: pairs, answers, and what each counts."""
