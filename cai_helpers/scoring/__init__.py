"""Which of two answers is better, and by how much: reward models, ensembles, AI feedback."""
