"""Strategies timed on this machine, and the cache of those times; a pass chooses among them."""
