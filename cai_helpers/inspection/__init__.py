"""What the inspector shows: pairs one by one, their word diff, the blind round."""
