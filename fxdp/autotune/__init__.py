"""Strategies timed on this machine, and the cache of those times; which to take is the planner's."""
