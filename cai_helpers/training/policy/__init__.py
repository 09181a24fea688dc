"""The LoRA that trains, what it starts from, and the reference it is held against."""
