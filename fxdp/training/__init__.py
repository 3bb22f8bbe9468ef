"""A whole run: make_private, schedules, checkpoints, progress."""
