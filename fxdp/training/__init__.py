"""Whole training runs: make_private, schedules, checkpoints, progress."""
