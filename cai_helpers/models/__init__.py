"""Language models: where they come from, how they talk, how they are sampled, and those behind an endpoint."""
