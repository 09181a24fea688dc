"""Conversations from files and datasets; no duplicates, none both trained on and evaluated."""
