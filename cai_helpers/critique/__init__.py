"""Asking a model to criticise and revise: the constitution, the protocols, the critic, and what its words come to."""
