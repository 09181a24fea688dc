"""Which pairs train, and why the others do not: the rules, and what a person decided."""
