"""Strategies timed on this machine, and the cache of those times; which to take, a pass says."""
