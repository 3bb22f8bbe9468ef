"""Refusals: the code, the line in the user's model, and the remedy of each."""
