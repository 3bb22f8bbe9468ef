"""Clipping rules, Gaussian and correlated noise, the keystream: DP-SGD without a graph."""
