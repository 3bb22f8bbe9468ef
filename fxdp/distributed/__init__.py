"""Refuses other processes that would take part in a private step; none may, for now."""
