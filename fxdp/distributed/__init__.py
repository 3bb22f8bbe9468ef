"""What other processes may do to a private step: for now, nothing."""
